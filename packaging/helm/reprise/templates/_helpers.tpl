{{- define "reprise.labels" -}}
app.kubernetes.io/name: reprise
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "reprise.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "reprise.nonroot" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "reprise.pull" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The capture proxy as a container: of the gateway below, or a sidecar of yours. It
mounts the volumes "reprise-traces" and, with keySecret, "reprise-key". */}}
{{- define "reprise.capture.container" -}}
{{- $c := .Values.capture -}}
name: capture
image: {{ .Values.image | quote }}
imagePullPolicy: {{ .Values.imagePullPolicy }}
command: [capture]
args:
  - proxy
  - --listen=:{{ $c.port }}
  - {{ printf "--upstream=%s" $c.upstream | quote }}
  - --admin=:{{ $c.adminPort }}
  - --output=/traces/$(POD_NAME).parquet
  {{- with $c.rollEvery }}
  - --roll-every={{ . }}
  {{- end }}
  {{- with $c.sample }}
  - --sample={{ . }}
  {{- end }}
  {{- if $c.keySecret }}
  - --key-file=/key/key
  {{- end }}
  {{- range $c.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
ports:
  - {name: http, containerPort: {{ $c.port }}}
  - {name: admin, containerPort: {{ $c.adminPort }}}
readinessProbe:
  httpGet: {path: /healthz, port: admin}
resources:
  {{- toYaml $c.resources | nindent 2 }}
securityContext:
  {{- include "reprise.hardened" . | nindent 2 }}
volumeMounts:
  - {name: reprise-traces, mountPath: /traces}
  {{- if $c.keySecret }}
  - {name: reprise-key, mountPath: /key, readOnly: true}
  {{- end }}
{{- end }}

{{- define "reprise.capture.volumes" -}}
{{- $c := .Values.capture -}}
- name: reprise-traces
  {{- if $c.storage.claim }}
  persistentVolumeClaim: {claimName: {{ $c.storage.claim | quote }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $c.storage.size }}}
  {{- end }}
{{- if $c.keySecret }}
- name: reprise-key
  secret: {secretName: {{ $c.keySecret | quote }}, defaultMode: 0400}
{{- end }}
{{- end }}
