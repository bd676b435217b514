{{/* What all names of the release begin with. 52 characters leave room for the ordinal and hash that
     Kubernetes appends to a StatefulSet's pods. */}}
{{- define "partner-bridge.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "partner-bridge.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "partner-bridge.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "partner-bridge.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "partner-bridge.serviceAccountName" -}}
{{- $made := ternary (include "partner-bridge.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $made .Values.serviceAccount.name -}}
{{- end }}

{{- define "partner-bridge.secretName" -}}
{{- default (include "partner-bridge.fullname" .) .Values.secret.name -}}
{{- end }}

{{- define "partner-bridge.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end }}

{{/* preStop and SIGTERM share one clock: the pause, the drain, the 4 s that the process may take beyond it,
     and 6 s for a slow node. */}}
{{- define "partner-bridge.graceSeconds" -}}
{{- add (int .Values.shutdown.preStopSeconds) (int .Values.shutdown.drainSeconds) 4 6 -}}
{{- end }}

{{/* bridge.yaml: the user's part, and `journal` and `server`, which must agree with the pod around them.
     The addresses and the journal's place come by environment. */}}
{{- define "partner-bridge.config" -}}
{{- $server := dict
      "workers" (int .Values.server.workers)
      "threads" (int .Values.server.threads)
      "max_body" .Values.server.maxBody
      "drain_timeout" (printf "%ds" (int .Values.shutdown.drainSeconds)) -}}
{{- with .Values.server.publicUrl }}{{ $_ := set $server "public_url" . }}{{ end -}}
{{- with .Values.server.adminTokenKey -}}
{{- $_ := set $server "admin_token" (dict "file" (printf "/run/secrets/partner-bridge/%s" .)) -}}
{{- end -}}
{{- $journal := dict
      "max_pending" (int .Values.journal.maxPending)
      "max_size" (printf "%dMiB" (div (mul (int .Values.journal.volumeGiB) 1024 8) 10))
      "retention" .Values.journal.retention
      "remember" .Values.journal.remember -}}
{{- $config := omit .Values.config "retry" -}}
{{- with .Values.config.retry }}{{ $_ := set $config "retry" . }}{{ end -}}
{{- toYaml (merge (dict "server" $server "journal" $journal) $config) -}}
{{- end }}
