package gpu

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"unicode/utf8"
)

// A Fault is a failed reading with a name that people and programs can tell
// apart. Its text holds no address.
type Fault struct {
	Name string // one of the Fault constants
	Err  error  // what happened, may be nil
}

// Names of faults.
const (
	FaultNoDriver       = "no_driver"       // libnvidia-ml.so.1 is not there, or the kernel module is not loaded
	FaultDriverMismatch = "driver_mismatch" // library and kernel module are of different versions
	FaultNoPermission   = "no_permission"   // the user may not read this
	FaultGPULost        = "gpu_lost"        // the GPU fell off the bus, or needs a reset
	FaultNotBuilt       = "not_built"       // this binary was built without it
	FaultUnreachable    = "unreachable"     // nobody answers there
	FaultTimeout        = "timeout"         // no answer in time
	FaultRefused        = "refused"         // an answer, but not 200
	FaultUnauthorized   = "unauthorized"    // token or certificate is wrong
	FaultNotMetrics     = "not_metrics"     // the answer is something else (HTML, JSON)
	FaultCutShort       = "cut_short"       // the answer ends in the middle
	FaultTooLong        = "too_long"        // more than is read of an answer
	FaultPanic          = "panic"           // the code of the source panicked
	FaultHung           = "hung"            // the source did not return
	FaultLate           = "late"            // readings were skipped because one took too long
	FaultLost           = "lost"            // samples were made and not kept
	FaultRestarted      = "restarted"       // the other side began anew
	FaultFailed         = "failed"          // anything else
)

func (f *Fault) Error() string {
	if f.Err == nil {
		return strings.ReplaceAll(f.Name, "_", " ")
	}
	return strings.ReplaceAll(f.Name, "_", " ") + ": " + f.Err.Error()
}

func (f *Fault) Unwrap() error { return f.Err }

// Faultf makes a Fault.
func Faultf(name, format string, args ...any) *Fault {
	return &Fault{name, fmt.Errorf(format, args...)}
}

// AsFault names an error: the Fault in it, or the one that describes what the
// network said, without the address it said it of.
func AsFault(err error) *Fault {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	var ne net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return &Fault{Name: FaultTimeout}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &Fault{Name: FaultCutShort}
	case errors.Is(err, os.ErrPermission):
		return &Fault{Name: FaultNoPermission}
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return Faultf(FaultUnauthorized, "the other side's certificate is of an unknown authority, expired, or for another name")
	}
	if oe, ok := errors.AsType[*net.OpError](err); ok && oe.Op == "remote error" {
		return &Fault{FaultUnauthorized, oe.Err} // an alert of TLS: "certificate required"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return Faultf(FaultUnreachable, "the other side does not speak TLS: http:// in place of https://?")
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return &Fault{FaultUnreachable, no}
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return Faultf(FaultUnreachable, "the name does not resolve")
	}
	if _, ok := errors.AsType[*net.OpError](err); ok || errors.Is(err, io.EOF) {
		return &Fault{Name: FaultUnreachable}
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return Faultf(FaultUnreachable, "the exchange broke off") // its text may hold an address
	}
	return &Fault{FaultFailed, err}
}

// note is the text of a fault in a sample: bounded, on one line, valid UTF-8.
func (f *Fault) note() string { return clipNote(f.Error()) }

// maxNote bounds Sample.Note, in bytes.
const maxNote = 160

func clipNote(s string) string {
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "\uFFFD")
	if len(s) <= maxNote {
		return s
	}
	cut := maxNote - len("…")
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
