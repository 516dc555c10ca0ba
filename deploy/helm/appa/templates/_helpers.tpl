{{- define "appa.name" -}}
{{- if contains "appa" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-appa" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels that select the pods of a part: (dict "root" $ "part" "gateway") */}}
{{- define "appa.selector" -}}
app.kubernetes.io/name: appa
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "appa.labels" -}}
{{ include "appa.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "appa.image" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "appa.claim" -}}
{{- .Values.data.existingClaim | default (printf "%s-data" (include "appa.name" .)) }}
{{- end }}

{{/* What all pods have but their containers: (dict "root" $ "part" "gateway" "of" values) */}}
{{- define "appa.pod" -}}
serviceAccountName: {{ include "appa.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .root.Values.user }}
  runAsGroup: {{ .root.Values.user }}
  fsGroup: {{ .root.Values.user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: data
    persistentVolumeClaim: {claimName: {{ include "appa.claim" .root }}}
  - name: scratch
    emptyDir: {}
  {{- if .root.Values.models.existingClaim }}
  - name: models
    persistentVolumeClaim: {claimName: {{ .root.Values.models.existingClaim }}, readOnly: true}
  {{- end }}
{{- end }}

{{/* What all containers have but image, command and probes: (dict "root" $ "environment" map) */}}
{{- define "appa.container" -}}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  - name: APPA_REDIS_URL
    valueFrom:
      secretKeyRef:
        name: {{ required "redis.secret: name a secret whose key holds the URL of Redis" .root.Values.redis.secret }}
        key: {{ .root.Values.redis.secretKey }}
  - {name: APPA_DATA_DIR, value: /data}
  - {name: APPA_LOG_FORMAT, value: json}
  - {name: HOME, value: /tmp}
  {{- range $name, $value := merge (deepCopy .environment) .root.Values.settings }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
{{- with .root.Values.settingsSecrets }}
envFrom:
  {{- range . }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: scratch, mountPath: /tmp}
  {{- if .root.Values.models.existingClaim }}
  - {name: models, mountPath: /models, readOnly: true}
  {{- end }}
{{- end }}
