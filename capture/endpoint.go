package capture

import (
	"strings"

	"reprise/traceformat"
)

// A route is what a path says of a request.
type route struct {
	endpoint string // of the Endpoint constants, or empty: the body decides
	stream   bool   // the path itself asks for a stream
	reason   string // why it is not recorded, or empty
}

// routes are the endings of the paths of endpoints. Gateways put prefixes before
// them, so the ending decides.
var routes = []struct {
	suffix string
	route
}{
	{"/chat/completions", route{endpoint: traceformat.EndpointChat}},
	{"/completions", route{endpoint: traceformat.EndpointCompletions}},
	{"/completion", route{endpoint: traceformat.EndpointCompletions}}, // llama.cpp
	{"/responses", route{endpoint: traceformat.EndpointResponses}},
	{"/messages", route{endpoint: traceformat.EndpointMessages}},
	{"/embeddings", route{endpoint: traceformat.EndpointEmbeddings}},
	{"/embed", route{endpoint: traceformat.EndpointEmbeddings}},
	{"/encode", route{endpoint: traceformat.EndpointEmbeddings}}, // SGLang
	{"/generate_stream", route{endpoint: traceformat.EndpointGenerate, stream: true}},
	{"/generate", route{endpoint: traceformat.EndpointGenerate}},
	// Of these the body says what they are: TGI's root, SageMaker, Vertex AI.
	{"/invocations", route{}},
	{"/predict", route{}},
	{":predict", route{}},
	{":rawPredict", route{}},
	{":streamRawPredict", route{stream: true}},
}

// probes are the last parts of paths that are asked for by machinery.
var probes = map[string]string{
	"health": ReasonHealthCheck, "healthz": ReasonHealthCheck, "healthcheck": ReasonHealthCheck,
	"health_check": ReasonHealthCheck, "health_generate": ReasonHealthCheck, "_health": ReasonHealthCheck,
	"liveness": ReasonHealthCheck, "liveliness": ReasonHealthCheck, "live": ReasonHealthCheck, "livez": ReasonHealthCheck,
	"readiness": ReasonHealthCheck, "ready": ReasonHealthCheck, "readyz": ReasonHealthCheck,
	"startup": ReasonHealthCheck, "ping": ReasonHealthCheck, "status": ReasonHealthCheck,

	"metrics": ReasonMetrics, "stats": ReasonMetrics, "prometheus": ReasonMetrics, "load": ReasonMetrics,
	"get_load": ReasonMetrics, "loads": ReasonMetrics, "slots": ReasonMetrics,

	"models": ReasonModelList, "model_info": ReasonModelList, "get_model_info": ReasonModelList,
	"info": ReasonModelList, "server_info": ReasonModelList, "get_server_info": ReasonModelList,
	"props": ReasonModelList, "tags": ReasonModelList, "version": ReasonModelList,
}

// routeOf says what a request is by its head. Method may be empty: unknown.
func routeOf(method, target string) route {
	path := pathOf(target)
	if path == "" && method == "" {
		return route{} // the capture could not read the head
	}
	last := path[strings.LastIndexByte(path, '/')+1:]
	if method == "POST" || method == "" {
		if path == "/" {
			return route{}
		}
		for _, r := range routes {
			if strings.HasSuffix(path, r.suffix) {
				return r.route
			}
		}
	}
	if reason, ok := probes[last]; ok {
		return route{reason: reason}
	}
	if (method == "GET" || method == "HEAD") && (path == "/" || path == "") {
		return route{reason: ReasonHealthCheck}
	}
	if strings.Contains(path, "/models/") {
		return route{reason: ReasonModelList}
	}
	return route{reason: ReasonNotLLM}
}

// pathOf is the path of a request target: no scheme, host, query or slash at the
// end.
func pathOf(target string) string {
	if _, rest, ok := strings.Cut(target, "://"); ok && !strings.HasPrefix(target, "/") {
		i := strings.IndexByte(rest, '/')
		if i < 0 {
			return "/"
		}
		target = rest[i:]
	}
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	for len(target) > 1 && target[len(target)-1] == '/' {
		target = target[:len(target)-1]
	}
	return target
}

// shapeOf says what a body is whose path is unknown, by the members that it
// has; empty if it is none that is known.
func (b *requestBody) shapeOf() string {
	switch {
	case b.messages != nil && b.anthropic:
		return traceformat.EndpointMessages
	case b.messages != nil:
		return traceformat.EndpointChat
	case b.prompt != nil:
		return traceformat.EndpointCompletions
	case b.inputs != nil, b.ids != nil, b.text != nil && b.sampling:
		return traceformat.EndpointGenerate
	case b.input != nil && (b.responses || b.stream.OK):
		return traceformat.EndpointResponses
	case b.input != nil:
		return traceformat.EndpointEmbeddings
	}
	return ""
}
