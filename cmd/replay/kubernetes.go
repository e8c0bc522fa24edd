package main

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/wallclock"
)

func kubernetesCommand() *urfave.Command {
	return &urfave.Command{
		Name:      "kubernetes",
		Usage:     "print a manifest that plays a trace in shards on a cluster",
		UsageText: "replay kubernetes TRACE --shards N --url URL --claim NAME [flags, also those of a run]",
		Description: `
Kubernetes prints what "kubectl apply -f -" takes: a ConfigMap with what all shards
share, an Indexed Job of one pod a shard, spread over the nodes, and a Job that waits for
the shards and joins them with "report merge". Flags of a run (--backend, --speedup,
--slo, …) go to each shard as they are. Nothing is asked of a cluster.

TRACE is a name as the pods see it: a path below the volume of --claim, or model:NAME.
Results go to RESULTS/NAME in that volume, which all pods must be able to write
(ReadWriteMany, or one node).

All pods begin at one time, --start-in from now, by the clock that --clock names; a pod
that is not up by then fails, and with it the run: a replay that went on without a part of
its load would measure something else.

Examples:
  replay kubernetes /data/trace.parquet --shards 16 --claim traces --backend vllm \
    --url http://vllm:8000 --clock ntp://169.254.169.123 | kubectl apply -f -
  replay kubernetes model:azure-conv --duration 10m --shards 4 --claim results \
    --url http://gateway --api-key-secret gateway/token --start-in 3m > job.yaml`,
		Flags: append([]urfave.Flag{
			&urfave.IntFlag{Name: "shards", Usage: "play in `N` pods"},
			&urfave.StringFlag{Name: "claim", Usage: "`NAME` of the PersistentVolumeClaim for trace and results"},
			&urfave.StringFlag{Name: "mount", Value: "/data", Usage: "`PATH` of its volume in the pods"},
			&urfave.StringFlag{Name: "results", Usage: "`PATH` below which results go", DefaultText: "MOUNT/runs"},
			&urfave.StringFlag{Name: "image", Value: "reprise:latest", Usage: "`IMAGE` with replay and report"},
			&urfave.StringFlag{Name: "name", Usage: "`NAME` of the run and of its jobs", DefaultText: "replay-DATE-TIME"},
			&urfave.StringFlag{Name: "namespace", Usage: "`NAME` of the namespace", DefaultText: "that of kubectl"},
			&urfave.StringFlag{Name: "api-key-secret", Usage: "`SECRET/KEY` that holds the server's bearer token"},
			&urfave.DurationFlag{Name: "start-in", Value: 5 * time.Minute, Usage: "first scheduled send `TIME` from now; scheduling, images and planning have to be done by then"},
			&urfave.StringFlag{Name: "spread", Value: "kubernetes.io/hostname", Usage: "spread the pods evenly over values of this `LABEL` of nodes"},
			&urfave.StringFlag{Name: "cpu", Value: "2", Usage: "CPUs of a pod: requested and limited to, so that pacing is not throttled"},
			&urfave.StringFlag{Name: "memory", Value: "1Gi", Usage: "memory of a pod"},
			&urfave.DurationFlag{Name: "merge-wait", Value: 24 * time.Hour, Usage: "how long the joining waits for the shards"},
		}, shardFlags()...),
		Action: printKubernetes,
	}
}

// manifestFlags are flags of a run that the manifest sets itself.
var manifestFlags = []string{"output", "force", "shard", "start-at", "json", "quiet", "api-key-env"}

// shardFlags are those of a run that each shard may be given.
func shardFlags() []urfave.Flag {
	return slices.DeleteFunc(runFlags(), func(f urfave.Flag) bool { return slices.Contains(manifestFlags, f.Names()[0]) })
}

// A shardedJob is what goes into a manifest.
type shardedJob struct {
	name, namespace, image, claim, mount, results string
	trace                                         string
	flags                                         []string // of each shard
	shards                                        int
	startAt                                       time.Time
	clock                                         string
	secret, key                                   string
	spread, cpu, memory                           string
	mergeWait                                     time.Duration
}

var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?$`)   // with a suffix of ours below 63
	objName  = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`) // of an object that is there already
	quantity = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$`)
	// mention is how a manifest refers to a variable; "$$" escapes the dollar.
	mention = strings.NewReplacer("$(", "$$(")
)

func printKubernetes(c *urfave.Context) error {
	j, err := parseKubernetes(c)
	if err != nil {
		return err
	}
	for i, object := range j.objects() {
		b, err := yaml.MarshalWithOptions(object, yaml.IndentSequence(false))
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintln(c.App.Writer, "---")
		}
		if _, err := c.App.Writer.Write(append(b, '\n')); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.App.ErrWriter, "%d shards begin at %s; the joined run will be %s\n", j.shards, j.startAt.Format(time.RFC3339), path.Join(j.results, "run"))
	if j.clock == "" {
		fmt.Fprintln(c.App.ErrWriter, "warning: without --clock each pod begins by the clock of its node")
	}
	return nil
}

func parseKubernetes(c *urfave.Context) (*shardedJob, error) {
	const example = "replay kubernetes /data/trace.parquet --shards 16 --claim traces --backend vllm --url http://vllm:8000"
	trace, err := traceName(c)
	if err != nil {
		return nil, err
	}
	now := wallclock.Now()
	j := &shardedJob{
		name: cmp.Or(c.String("name"), now.UTC().Format("replay-20060102-150405")), namespace: c.String("namespace"),
		image: c.String("image"), claim: c.String("claim"), mount: path.Clean(c.String("mount")),
		trace: trace, shards: c.Int("shards"), clock: c.String("clock"),
		startAt: now.Add(c.Duration("start-in")).Truncate(time.Second).UTC(),
		spread:  c.String("spread"), cpu: c.String("cpu"), memory: c.String("memory"), mergeWait: c.Duration("merge-wait"),
	}
	j.results = path.Join(cmp.Or(c.String("results"), path.Join(j.mount, "runs")), j.name)
	var ok bool
	if s := c.String("api-key-secret"); s != "" {
		if j.secret, j.key, ok = strings.Cut(s, "/"); !ok || j.secret == "" || j.key == "" {
			return nil, cli.Usagef("", "--api-key-secret is %q, want SECRET/KEY", s)
		}
	}
	bad := func(format string, a ...any) error { return cli.Usagef(example, format, a...) }
	switch {
	case c.IsSet("synthetic"):
		j.trace = ""
	case strings.Contains(trace, "://") || strings.HasPrefix(trace, "model:"):
	case !path.IsAbs(trace):
		return nil, bad("%s: want the path that the pods see, such as %s", trace, path.Join(j.mount, path.Base(trace)))
	}
	switch {
	case j.shards < 1:
		return nil, bad("--shards is %d, want how many pods are to play", j.shards)
	case j.claim == "":
		return nil, bad("--claim: which PersistentVolumeClaim holds trace and results?")
	case !objName.MatchString(j.claim):
		return nil, bad("--claim is %q, want the name of a PersistentVolumeClaim: lower-case letters, digits, dashes and dots", j.claim)
	case !dnsLabel.MatchString(j.name):
		return nil, bad("--name is %q, want up to 52 lower-case letters, digits and dashes", j.name)
	case j.namespace != "" && !dnsLabel.MatchString(j.namespace):
		return nil, bad("--namespace is %q, want lower-case letters, digits and dashes", j.namespace)
	case !quantity.MatchString(j.cpu) || !quantity.MatchString(j.memory):
		return nil, bad("--cpu %q and --memory %q: want quantities such as 2, 500m, 1Gi", j.cpu, j.memory)
	case !path.IsAbs(j.mount) || j.mount == "/":
		return nil, bad("--mount is %q, want a path of its own such as /data", j.mount)
	case c.Duration("start-in") < 10*time.Second:
		return nil, bad("--start-in is %v: no pod is up by then", c.Duration("start-in"))
	case len(c.StringSlice("backend")) != 1 || c.String("url") == "" && !strings.Contains(c.StringSlice("backend")[0], "=http"):
		return nil, bad("want one --backend and its --url: an engine embedded in each pod would be as many engines")
	}
	j.flags = givenFlags(c, shardFlags(), []string{"clock"})
	// What a run would refuse is refused here.
	if _, err := options(c); err != nil {
		return nil, cli.Usagef("", "%w", err)
	}
	return j, nil
}

// An object is written in the order of its items.
type object = yaml.MapSlice

func item(key string, value any) yaml.MapItem { return yaml.MapItem{Key: key, Value: value} }

// objects are the ConfigMap and the jobs. Values are data of a YAML library, so
// that nothing in a name or flag becomes structure.
func (j *shardedJob) objects() []object {
	labels := object{item("app.kubernetes.io/name", "reprise"), item("app.kubernetes.io/instance", j.name)}
	meta := func(suffix string) object {
		m := object{item("name", j.name+suffix)}
		if j.namespace != "" {
			m = append(m, item("namespace", j.namespace))
		}
		return append(m, item("labels", labels))
	}
	config := object{item("JOB_COMPLETIONS", fmt.Sprint(j.shards)), item("START_AT", j.startAt.Format(time.RFC3339)), item("RESULTS", j.results)}
	args := []string{}
	if j.trace != "" {
		args = append(args, mention.Replace(j.trace))
	}
	for _, f := range j.flags {
		args = append(args, "--"+mention.Replace(f))
	}
	args = append(args, "--quiet", "--start-at=$(START_AT)", "--output=$(RESULTS)/shard-$(JOB_COMPLETION_INDEX)")
	if j.clock != "" {
		config = append(config, item("CLOCK", j.clock))
		args = append(args, "--clock=$(CLOCK)")
	}
	env := []any{object{item("name", "JOB_COMPLETION_INDEX"), item("valueFrom", object{item("fieldRef", object{
		item("fieldPath", "metadata.annotations['batch.kubernetes.io/job-completion-index']"),
	})})}}
	if j.secret != "" {
		args = append(args, "--api-key-env=API_KEY")
		env = append(env, object{item("name", "API_KEY"), item("valueFrom", object{item("secretKeyRef", object{item("name", j.secret), item("key", j.key)})})})
	}
	size := object{item("cpu", j.cpu), item("memory", j.memory)}
	container := func(name string, command string, args []string, env []any, resources any) object {
		c := object{
			item("name", name), item("image", j.image), item("command", []string{command}), item("args", args),
			item("envFrom", []any{object{item("configMapRef", object{item("name", j.name)})}}),
		}
		if env != nil {
			c = append(c, item("env", env))
		}
		return append(c,
			item("resources", resources),
			item("securityContext", object{
				item("allowPrivilegeEscalation", false), item("readOnlyRootFilesystem", true),
				item("capabilities", object{item("drop", []string{"ALL"})}),
			}),
			item("volumeMounts", []any{
				object{item("name", "data"), item("mountPath", j.mount)},
				object{item("name", "tmp"), item("mountPath", "/tmp")},
			}),
		)
	}
	pod := func(role string, spread bool, container object) object {
		all := append(slices.Clone(labels), item("app.kubernetes.io/component", role))
		spec := object{
			item("restartPolicy", "Never"), item("automountServiceAccountToken", false),
			item("securityContext", object{
				item("runAsNonRoot", true), item("runAsUser", 65532), item("runAsGroup", 65532), item("fsGroup", 65532),
				item("seccompProfile", object{item("type", "RuntimeDefault")}),
			}),
		}
		if spread {
			spec = append(spec, item("topologySpreadConstraints", []any{object{
				item("maxSkew", 1), item("topologyKey", j.spread), item("whenUnsatisfiable", "ScheduleAnyway"),
				item("labelSelector", object{item("matchLabels", all)}),
			}}))
		}
		spec = append(spec, item("containers", []any{container}), item("volumes", []any{
			object{item("name", "data"), item("persistentVolumeClaim", object{item("claimName", j.claim)})},
			object{item("name", "tmp"), item("emptyDir", object{})},
		}))
		return object{item("metadata", object{item("labels", all)}), item("spec", spec)}
	}
	job := func(suffix string, spec object) object {
		return object{item("apiVersion", "batch/v1"), item("kind", "Job"), item("metadata", meta(suffix)), item("spec", spec)}
	}
	return []object{
		{item("apiVersion", "v1"), item("kind", "ConfigMap"), item("metadata", meta("")), item("data", config)},
		job("", object{
			item("completionMode", "Indexed"), item("completions", j.shards), item("parallelism", j.shards),
			// A shard that began again would be late by all that it missed. One
			// that fails, or ends invalid, takes none of the others with it.
			item("backoffLimitPerIndex", 0),
			item("template", pod("shard", true, container("replay", "replay", args, env,
				object{item("requests", size), item("limits", size)}))),
		}),
		job("-merge", object{
			item("backoffLimit", 2),
			item("template", pod("merge", false, container("report", "report",
				[]string{"merge", "$(RESULTS)/shard-*", "--wait=" + j.mergeWait.String(), "--force", "--partial", "--output=$(RESULTS)/run"}, nil,
				object{item("requests", object{item("cpu", "100m"), item("memory", j.memory)}), item("limits", object{item("memory", j.memory)})}))),
		}),
	}
}
