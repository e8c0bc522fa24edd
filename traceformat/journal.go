package traceformat

// journalMagic starts a journal; its last byte is the version.
const journalMagic = "RPRJRNL\x01"

// JournalPath is where the journal of the trace at path lies.
func JournalPath(path string) string { return path + ".journal" }
