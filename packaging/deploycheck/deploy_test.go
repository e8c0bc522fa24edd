// Package deploycheck holds what is printed and shipped for Kubernetes against
// the API's own types and Helm's own renderer. It is a module of its own, so that
// the product does not depend on them.
package deploycheck

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// objects decodes a manifest strictly: a field that the API does not have, or has
// twice, is an error.
func objects(t *testing.T, manifest string) (all []runtime.Object) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	for document := range strings.SplitSeq(manifest, "\n---\n") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		o, _, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		all = append(all, o)
	}
	return all
}

// sharded checks the jobs of a run.
func sharded(t *testing.T, all []runtime.Object, shards int32) {
	t.Helper()
	var config *corev1.ConfigMap
	var jobs []*batchv1.Job
	for _, o := range all {
		switch o := o.(type) {
		case *corev1.ConfigMap:
			config = o
		case *batchv1.Job:
			jobs = append(jobs, o)
		}
	}
	if config == nil || len(jobs) != 2 {
		t.Fatalf("a run is a ConfigMap and two jobs, got %v", all)
	}
	job, merge := jobs[0], jobs[1]
	if *job.Spec.CompletionMode != batchv1.IndexedCompletion || *job.Spec.Completions != shards || *job.Spec.Parallelism != shards || *job.Spec.BackoffLimitPerIndex != 0 || job.Spec.BackoffLimit != nil {
		t.Errorf("not an Indexed Job of %d that runs each index once: %+v", shards, job.Spec)
	}
	for _, j := range jobs {
		pod := j.Spec.Template.Spec
		c := pod.Containers[0]
		if c.EnvFrom[0].ConfigMapRef.Name != config.Name {
			t.Errorf("%s reads the ConfigMap %s", j.Name, c.EnvFrom[0].ConfigMapRef.Name)
		}
		// Each variable of an argument is one that the container has.
		for _, arg := range c.Args {
			for rest := arg; ; {
				_, after, found := strings.Cut(rest, "$(")
				if !found {
					break
				}
				name, tail, _ := strings.Cut(after, ")")
				rest = tail
				_, inConfig := config.Data[name]
				if !inConfig && !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name }) {
					t.Errorf("%s: %s: the container has no %s", j.Name, arg, name)
				}
			}
		}
		if !*pod.SecurityContext.RunAsNonRoot || !*c.SecurityContext.ReadOnlyRootFilesystem || *c.SecurityContext.AllowPrivilegeEscalation || *pod.AutomountServiceAccountToken {
			t.Errorf("%s is not hardened", j.Name)
		}
	}
	if s := job.Spec.Template.Spec.TopologySpreadConstraints; len(s) != 1 || !matches(s[0].LabelSelector.MatchLabels, job.Spec.Template.Labels) {
		t.Errorf("the shards are not spread: %+v", s)
	}
	if !slices.Contains(merge.Spec.Template.Spec.Containers[0].Args, "merge") {
		t.Errorf("the second job does not merge: %+v", merge.Spec.Template.Spec.Containers[0].Args)
	}
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

// What replay kubernetes prints is what the API takes.
func TestReplayKubernetes(t *testing.T) {
	program := filepath.Join(t.TempDir(), "replay")
	build := exec.Command("go", "build", "-o", program, "./cmd/replay")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(program, "kubernetes", "/data/trace.parquet", "--shards", "16", "--claim", "traces", "--namespace", "load", "--backend", "vllm",
		"--url", "http://vllm:8000", "--clock", "ntp://169.254.169.123", "--api-key-secret", "gateway/token", "--model", `a: "b" # $(START_AT)`)
	var diag bytes.Buffer
	cmd.Stderr = &diag
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &diag)
	}
	all := objects(t, string(out))
	sharded(t, all, 16)
	c := all[1].(*batchv1.Job).Spec.Template.Spec.Containers[0]
	if !slices.Contains(c.Args, `--model=a: "b" # $$(START_AT)`) {
		t.Errorf("a model's name did not come through: %q", c.Args)
	}
	if i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "API_KEY" }); i < 0 || c.Env[i].ValueFrom.SecretKeyRef.Key != "token" {
		t.Errorf("no secret: %+v", c.Env)
	}
}

// render renders the chart with values over its own.
func render(t *testing.T, values map[string]any) (string, error) {
	t.Helper()
	c, err := loader.LoadDir("../helm/reprise")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return renderChart(t, c, values)
}

func renderChart(t *testing.T, c *chart.Chart, values map[string]any) (string, error) {
	t.Helper()
	v, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "r", Namespace: "n"}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.Render(c, v)
	var all []string
	for name, text := range files {
		if strings.HasSuffix(name, ".yaml") {
			all = append(all, text)
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n---\n"), err
}

type values = map[string]any

func TestChart(t *testing.T) {
	if got, err := render(t, nil); err != nil || strings.TrimSpace(strings.ReplaceAll(got, "---", "")) != "" {
		t.Errorf("nothing is on by itself, and there is %q, %v", got, err)
	}
	run := values{"enabled": true, "name": "run-1", "trace": "/data/t.parquet", "startAt": "2026-01-31T12:00:00Z", "claim": "traces", "shards": 8,
		"clock": "ntp://h", "apiKeySecret": "gateway/token", "args": []any{"--backend=vllm", "--url=http://vllm:8000"}}
	got, err := render(t, values{
		"capture": values{"enabled": true, "keySecret": "key", "sample": "1/16", "extraArgs": []any{"--forwarded"}},
		"agent":   values{"enabled": true}, "replay": run, "imagePullSecrets": []any{values{"name": "pull"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, got)
	var kinds []string
	for _, o := range all {
		kinds = append(kinds, o.GetObjectKind().GroupVersionKind().Kind)
		if d, ok := o.(*appsv1.Deployment); ok {
			if args := d.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--sample=1/16") || !slices.Contains(args, "--key-file=/key/key") || !slices.Contains(args, "--forwarded") {
				t.Errorf("capture runs with %q", args)
			}
			if !matches(d.Spec.Selector.MatchLabels, d.Spec.Template.Labels) {
				t.Error("the deployment does not select its pods")
			}
		}
	}
	slices.Sort(kinds)
	if want := []string{"ConfigMap", "DaemonSet", "Deployment", "Job", "Job", "Service"}; !slices.Equal(kinds, want) {
		t.Errorf("objects %v, want %v", kinds, want)
	}
	sharded(t, all, 8)
	for _, missing := range []string{"name", "trace", "startAt", "claim"} {
		v := values{}
		for k, x := range run {
			v[k] = x
		}
		v[missing] = ""
		if _, err := render(t, values{"replay": v}); err == nil || !strings.Contains(err.Error(), "replay."+missing) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
}

// A chart of one's own takes the proxy as a sidecar.
func TestSidecar(t *testing.T) {
	c, err := loader.LoadDir("../helm/reprise")
	if err != nil {
		t.Fatal(err)
	}
	c.Templates = append(c.Templates, &chart.File{Name: "templates/engine.yaml", Data: []byte(`apiVersion: v1
kind: Pod
metadata:
  name: engine
spec:
  containers:
    - name: engine
      image: vllm/vllm-openai
    - {{- include "reprise.capture.container" . | nindent 6 }}
  volumes:
    {{- include "reprise.capture.volumes" . | nindent 4 }}
`)})
	got, err := renderChart(t, c, values{"capture": values{"upstream": "http://127.0.0.1:8000"}})
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, strings.Trim(got, "-\n \t"))
	pod := all[len(all)-1].(*corev1.Pod)
	if len(pod.Spec.Containers) != 2 || pod.Spec.Containers[1].Name != "capture" || pod.Spec.Volumes[0].EmptyDir.SizeLimit.String() != "10Gi" {
		t.Errorf("%+v", pod.Spec)
	}
}
