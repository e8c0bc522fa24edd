package wire

import "strings"

// isIdentity says whether a Content-Encoding changes nothing.
func isIdentity(v string) bool { return strings.EqualFold(strings.TrimSpace(v), "identity") }
