package proxylog

import (
	"bytes"
	"strings"

	"reprise/capture"
	"reprise/traceformat"
)

// endpointSuffixes are the ends of the paths of endpoints, whatever a gateway
// puts before them. A longer one goes before one that it ends with.
var endpointSuffixes = []struct{ suffix, endpoint string }{
	{"/chat/completions", traceformat.EndpointChat},
	{"/completions", traceformat.EndpointCompletions},
	{"/v1/messages", traceformat.EndpointMessages},
	{"/messages", traceformat.EndpointMessages},
	{"/responses", traceformat.EndpointResponses},
	{"/embeddings", traceformat.EndpointEmbeddings},
	{"/embed", traceformat.EndpointEmbeddings},
	{"/generate", traceformat.EndpointGenerate},
	{"/generate_stream", traceformat.EndpointGenerate},
	{"/api/chat", traceformat.EndpointChat},
	{"/converse", traceformat.EndpointChat},
	{"/converse-stream", traceformat.EndpointChat},
}

var probes = map[string]string{
	"health": capture.ReasonHealthCheck, "healthz": capture.ReasonHealthCheck, "livez": capture.ReasonHealthCheck,
	"readyz": capture.ReasonHealthCheck, "ready": capture.ReasonHealthCheck, "live": capture.ReasonHealthCheck,
	"liveness": capture.ReasonHealthCheck, "readiness": capture.ReasonHealthCheck, "startup": capture.ReasonHealthCheck,
	"ping": capture.ReasonHealthCheck, "health_generate": capture.ReasonHealthCheck, "status": capture.ReasonHealthCheck,
	"heartbeat": capture.ReasonHealthCheck, "load": capture.ReasonHealthCheck,
	"metrics": capture.ReasonMetrics, "stats": capture.ReasonMetrics, "nginx_status": capture.ReasonMetrics,
	"models": capture.ReasonModelList, "get_model_info": capture.ReasonModelList, "model_info": capture.ReasonModelList,
	"get_server_info": capture.ReasonModelList, "server_info": capture.ReasonModelList, "version": capture.ReasonModelList,
}

// A Route gives the endpoint of paths that begin with Prefix.
type Route struct{ Prefix, Endpoint string }

// classify gives the endpoint of a path, or why the request is left out.
func (o *Options) classify(method, path []byte) (endpoint, reason string) {
	if i := bytes.Index(path, []byte("://")); i >= 0 && i < 10 {
		rest := path[i+3:]
		if j := bytes.IndexByte(rest, '/'); j >= 0 {
			path = rest[j:]
		}
	}
	if i := bytes.IndexAny(path, "?#"); i >= 0 {
		path = path[:i]
	}
	path = bytes.TrimRight(path, "/")
	for _, r := range o.Routes {
		if strings.HasPrefix(string(path), r.Prefix) {
			endpoint = r.Endpoint
			break
		}
	}
	if endpoint == "" {
		for _, e := range endpointSuffixes {
			if n := len(path) - len(e.suffix); n >= 0 && string(path[n:]) == e.suffix {
				endpoint = e.endpoint
				break
			}
		}
	}
	if endpoint != "" && (len(method) == 0 || string(method) == "POST") {
		return endpoint, ""
	}
	if endpoint == "" {
		last := path[bytes.LastIndexByte(path, '/')+1:]
		if reason, ok := probes[string(last)]; ok {
			return "", reason
		}
		if bytes.Contains(path, []byte("/models/")) && string(method) == "GET" {
			return "", capture.ReasonModelList
		}
	}
	return "", capture.ReasonNotLLM
}

// IsEndpoint reports whether a word names an endpoint.
func IsEndpoint(word string) bool {
	for _, e := range endpointSuffixes {
		if e.endpoint == word {
			return true
		}
	}
	return false
}
