// Package agent carries telemetry from the host that has the GPUs to the one
// that runs the load.
//
// A [Server] answers read-only HTTP: it runs nothing and opens no files. A
// [Remote] is a gpu.Source at the other end, whose samples are the server's with
// their times moved to the run's clock.
//
// # Protocol, version 1
//
// All answers are JSON or, for samples, one JSON object a line. Times are
// nanoseconds of the server's monotonic clock.
//
//	GET /v1/time              {"instance":"…","receive_ns":…,"send_ns":…}
//	GET /v1/samples?from=N    {"version":1,"instance":"…","from":N,"lost":…}
//	                          samples as gpu.Sample is in JSON, oldest first, from number N
//	                          {"end":N+k}
//	GET /v1/about             sources, devices and how they fared
//	GET /metrics              the last values, for Prometheus
//	GET /healthz              ok
//
// Samples are numbered from 0 by the server's instance, which is a random name
// that it takes when it starts. A client asks from the number behind the last it
// has; "lost" counts those that the server no longer has, and another instance
// means that it began anew: both are gaps. Without from, samples from now on.
//
// # Clocks
//
// The offset between the clocks is measured as NTP does (RFC 5905, section 8):
// of an exchange with times t0, t1, t2, t3 the offset is ((t1-t0)+(t2-t3))/2 and
// the truth is at most half the round trip, (t3-t0)-(t2-t1), away from it,
// however unequal the two ways are. Many exchanges are made and the quickest
// of the recent ones counts.
//
// # Who may ask
//
// Whoever reaches the address, if that is a loopback one; otherwise who knows
// the token (Authorization: Bearer) or has a certificate of the right authority.
package agent
