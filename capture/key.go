package capture

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
)

// KeyBytes is the size of a key.
const KeyBytes = 32

// A Key turns identities into pseudonyms by HMAC-SHA256. It is safe for
// concurrent use.
type Key struct {
	secret [KeyBytes]byte
	pool   sync.Pool // of hash.Hash
}

// NewKey returns a fresh random key, which lives in memory alone.
func NewKey() *Key {
	k := newKey()
	rand.Read(k.secret[:]) // never fails: it ends the program instead
	return k
}

func newKey() *Key {
	k := new(Key)
	k.pool.New = func() any { return hmac.New(sha256.New, k.secret[:]) }
	return k
}

// LoadKey reads the key at path, or creates it there with a random key and mode
// 0600 if nothing is there, so that replicas and restarts can share it. A file
// that others than its owner can read is refused; one of root's may be read by
// its group, as a Secret of Kubernetes is under fsGroup.
func LoadKey(path string) (*Key, error) {
	k, err := createKey(path)
	if errors.Is(err, fs.ErrExist) {
		k, err = readKey(path)
	}
	if err != nil {
		if p, ok := errors.AsType[*fs.PathError](err); ok {
			err = p.Err
		}
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return k, nil
}

func createKey(path string) (_ *Key, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	k := NewKey()
	if _, err := f.WriteString(hex.EncodeToString(k.secret[:]) + "\n"); err != nil {
		return nil, err
	}
	return k, f.Sync()
}

func readKey(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	others := fs.FileMode(0o077)
	if fromRoot(info) {
		others = 0o037
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, errors.New("is no regular file")
	case info.Mode().Perm()&others != 0:
		return nil, fmt.Errorf("others can read it (mode %04o): chmod 600, and make a new key if it was shared", info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, 2*KeyBytes+16))
	if err != nil {
		return nil, err
	}
	k := newKey()
	text := strings.TrimSpace(string(b))
	if n, err := hex.Decode(k.secret[:], []byte(text[:min(len(text), 2*KeyBytes)])); err != nil || n != KeyBytes || len(text) != 2*KeyBytes {
		// The error of package hex would quote the key.
		return nil, fmt.Errorf("holds no key, want %d hexadecimal digits", 2*KeyBytes)
	}
	return k, nil
}

// What is hashed apart from what: the same word as a client and as a session
// gives two pseudonyms.
const (
	domainFingerprint = "reprise/fingerprint"
	domainClient      = "reprise/client"
	domainSession     = "reprise/session"
	domainRoot        = "reprise/root"
	domainModel       = "reprise/model"
	domainMedia       = "reprise/media"
	domainUser        = "reprise/user"
	domainRequest     = "reprise/request"
	domainSample      = "reprise/sample"
	domainLogBlock    = "reprise/log-block"
	domainBlock       = "reprise/block"
	domainBoundary    = "reprise/boundary"
)

// Fingerprint names the key without giving it away: ids compare only within one
// fingerprint. 64 bits, in hexadecimal.
func (k *Key) Fingerprint() string {
	var d [sha256.Size]byte
	k.sum(&d, domainFingerprint, nil, "")
	return hex.EncodeToString(d[:8])
}

// sum is HMAC-SHA256(key, domain, 0, prefix, text).
func (k *Key) sum(dst *[sha256.Size]byte, domain string, prefix []byte, text string) {
	h := k.pool.Get().(hash.Hash)
	h.Reset()
	io.WriteString(h, domain)
	h.Write([]byte{0})
	h.Write(prefix)
	io.WriteString(h, text)
	h.Sum(dst[:0])
	k.pool.Put(h)
}

// id is the first 64 bits of the sum of text.
func (k *Key) id(domain, text string) uint64 {
	var d [sha256.Size]byte
	k.sum(&d, domain, nil, text)
	return binary.BigEndian.Uint64(d[:])
}

// session is the id of a session that is named by text, 63 bits: the column is
// signed, and a negative session would look like a sentinel.
func (k *Key) session(text string) int64 { return int64(k.id(domainSession, text) >> 1) }

// pseudonym is the id of text as a word.
func (k *Key) pseudonym(domain, prefix, text string) string {
	return fmt.Sprintf("%s%016x", prefix, k.id(domain, text))
}
