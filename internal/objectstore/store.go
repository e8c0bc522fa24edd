package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Schemes are the prefixes of names in object storage.
var Schemes = []string{"s3://", "gs://", "azblob://"}

// A name is where an object lies: scheme://bucket/key?parameters.
type name struct {
	full   string // as given
	bucket string // scheme://bucket?parameters
	key    string
}

// parse cuts a name into its parts.
func parse(full string) (*name, error) {
	scheme, rest, ok := strings.Cut(full, "://")
	if !ok {
		return nil, errors.New("want scheme://bucket/key")
	}
	rest, query, _ := strings.Cut(rest, "?")
	bucket, key, _ := strings.Cut(rest, "/")
	if bucket == "" {
		return nil, fmt.Errorf("names no bucket: want %s://bucket/key", scheme)
	}
	params, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("its parameters: %w", err)
	}
	// A server of one's own is reached under one host name, and not under one
	// for each bucket as Amazon's.
	own := params.Has("endpoint") || os.Getenv("AWS_ENDPOINT_URL") != "" || os.Getenv("AWS_ENDPOINT_URL_S3") != ""
	if scheme == "s3" && own && !params.Has("use_path_style") {
		params.Set("use_path_style", "true")
	}
	u := url.URL{Scheme: scheme, Host: bucket, RawQuery: params.Encode()}
	return &name{full: full, bucket: u.String(), key: key}, nil
}

// with is the name of another object of the bucket.
func (n *name) with(key string) *name {
	before, query, has := strings.Cut(n.full, "?")
	scheme, rest, _ := strings.Cut(before, "://")
	bucket, _, _ := strings.Cut(rest, "/")
	full := scheme + "://" + bucket + "/" + key
	if has {
		full += "?" + query
	}
	return &name{full: full, bucket: n.bucket, key: key}
}

const (
	// attempts bounds how often a request is made.
	attempts = 5
	// patience is how long one may take.
	patience = 2 * time.Minute
)

// firstPause is the pause after the first failure; each further one is twice as
// long. Tests shorten it.
var firstPause = 200 * time.Millisecond

// retry makes a request until it succeeds or fails for good. It returns the last
// error, explained.
func (n *name) retry(ctx context.Context, request func(context.Context) error) error {
	pause := firstPause
	for i := 1; ; i++ {
		one, cancel := context.WithTimeout(ctx, patience)
		err := request(one)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e := explain(err); e != nil {
			return e
		}
		if i == attempts {
			return fmt.Errorf("failed %d times, the last time with: %w", attempts, short(err))
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause *= 2
	}
}

// Reasons for which asking again is of no use.
var (
	// ErrChanged is an object that was replaced while it was read.
	ErrChanged = errors.New("the object was replaced while it was read: start again when nobody writes it")
	// ErrDenied is a bucket that refuses.
	ErrDenied = errors.New("access denied: the credentials are wrong, or lack what is asked for: s3:GetObject to read, s3:ListBucket for folders and patterns, s3:PutObject and s3:AbortMultipartUpload to write, s3:DeleteObject for a dataset and --force (or what the store calls these)")
	// ErrCredentials is a request without credentials, or with bad ones.
	ErrCredentials = errors.New("credentials")
)

// explain is a reason that lasts, with the next step, or nil. The drivers pass
// on what their libraries say, and these have no common kinds for most of it.
func explain(err error) error {
	text := err.Error()
	says := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	switch {
	case errors.Is(err, ErrChanged):
		return err
	case errors.Is(err, context.Canceled):
		return err
	case says("ExpiredToken", "token has expired", "TokenExpired", "expired token", "invalid_grant"):
		return fmt.Errorf("%w have expired: get new ones and start again (%w)", ErrCredentials, short(err))
	case says("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "InvalidToken", "AuthFailure", "StatusCode: 401"):
		return fmt.Errorf("%w are not accepted: see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, gcloud auth, or AZURE_STORAGE_KEY (%w)", ErrCredentials, short(err))
	case says("get credentials", "failed to refresh cached credentials", "could not find default credentials", "no EC2 IMDS role", "DefaultAzureCredential", "NoCredentialProviders", "AZURE_STORAGE_ACCOUNT"):
		return fmt.Errorf("no %w were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY; ?anonymous=true reads a public bucket", ErrCredentials)
	case says("NoSuchBucket"):
		return fmt.Errorf("no such bucket: %w", fs.ErrNotExist)
	case says("InvalidBucketName"):
		return fmt.Errorf("the store takes no such bucket name (%w)", short(err))
	case says("an AWS region is required", "Invalid Configuration: Missing Region", "MissingRegion"):
		return errors.New("the region is not known: set AWS_REGION, or end the name in ?region=eu-west-1")
	}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound:
		return fmt.Errorf("no such object: %w", fs.ErrNotExist)
	case gcerrors.PermissionDenied:
		return fmt.Errorf("%w (%w)", ErrDenied, short(err))
	case gcerrors.FailedPrecondition:
		return ErrChanged
	case gcerrors.InvalidArgument, gcerrors.Unimplemented:
		return short(err)
	}
	if says("StatusCode: 400") && !says("RequestTimeout") { // that is the one that passes
		return fmt.Errorf("the store does not take the request (%w)", short(err))
	}
	return nil
}

// short is err in one line of a bearable length.
func short(err error) error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 300 {
		text = text[:300] + "..."
	}
	return &shortError{text, err}
}

type shortError struct {
	text string
	err  error
}

func (e *shortError) Error() string { return e.text }
func (e *shortError) Unwrap() error { return e.err }

// openBucket opens the bucket of a name. Tests replace it.
var openBucket = func(ctx context.Context, n *name) (*blob.Bucket, error) {
	b, err := blob.OpenBucket(ctx, n.bucket)
	if err != nil {
		if e := explain(err); e != nil {
			return nil, e
		}
		return nil, short(err)
	}
	return b, nil
}

// attributes describes an object; the error wraps fs.ErrNotExist where there is
// none.
func attributes(ctx context.Context, b *blob.Bucket, n *name) (a *blob.Attributes, err error) {
	err = n.retry(ctx, func(ctx context.Context) (err error) {
		a, err = b.Attributes(ctx, n.key)
		return err
	})
	return a, err
}

// list calls each with the objects whose keys start with prefix, or with their
// next folder where they have a slash beyond it and deep is false.
func list(ctx context.Context, b *blob.Bucket, n *name, prefix string, deep bool, each func(*blob.ListObject) error) error {
	o := &blob.ListOptions{Prefix: prefix}
	if !deep {
		o.Delimiter = "/"
	}
	token := blob.FirstPageToken
	for token != nil {
		var page []*blob.ListObject
		var next []byte
		err := n.retry(ctx, func(ctx context.Context) (err error) {
			page, next, err = b.ListPage(ctx, token, 1000, o)
			return err
		})
		if err != nil {
			return err
		}
		for _, obj := range page {
			if err := each(obj); err != nil {
				return err
			}
		}
		if token = next; len(token) == 0 {
			return nil
		}
	}
	return nil
}

// readRange reads [from, to) of an object as it was when a described it.
func readRange(ctx context.Context, b *blob.Bucket, n *name, a *blob.Attributes, from, to int64) (data []byte, err error) {
	data = make([]byte, to-from)
	err = n.retry(ctx, func(ctx context.Context) error {
		r, err := b.NewRangeReader(ctx, n.key, from, to-from, &blob.ReaderOptions{BeforeRead: pin(a)})
		if err != nil {
			return err
		}
		defer r.Close()
		// Not every store can be asked for one version: what it answers with
		// tells, too.
		if r.Size() != a.Size || !r.ModTime().IsZero() && !r.ModTime().Truncate(time.Second).Equal(a.ModTime.Truncate(time.Second)) {
			return ErrChanged
		}
		_, err = io.ReadFull(r, data)
		return err
	})
	return data, err
}

// pins tell a driver to read one version of an object; drivers.go fills it.
var pins []func(a *blob.Attributes, as func(any) bool) bool

func pin(a *blob.Attributes) func(as func(any) bool) error {
	return func(as func(any) bool) error {
		for _, p := range pins {
			if p(a, as) {
				break
			}
		}
		return nil
	}
}
