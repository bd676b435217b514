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
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The pods of `helm test`: never selected by the Service. */}}
{{- define "partner-bridge.testLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels of an object; the user's never replace the chart's own. */}}
{{- define "partner-bridge.labels" -}}
{{- $own := include "partner-bridge.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service -}}
{{- toYaml (merge $own .Values.commonLabels) -}}
{{- end }}

{{/* Labels and annotations of an object. Takes a list: the root, and the annotations of this object alone. */}}
{{- define "partner-bridge.metadata" -}}
{{- $root := index . 0 -}}
{{- $annotations := merge (deepCopy (index . 1)) $root.Values.commonAnnotations -}}
labels:
  {{- include "partner-bridge.labels" $root | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "partner-bridge.serviceAccountName" -}}
{{- $made := ternary (include "partner-bridge.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $made .Values.serviceAccount.name -}}
{{- end }}

{{- define "partner-bridge.secretName" -}}
{{- default (include "partner-bridge.fullname" .) .Values.secret.name -}}
{{- end }}

{{/* Where the pod finds the database's URL: in the service's own Secret, unless another one holds it. */}}
{{- define "partner-bridge.journalUrlFile" -}}
{{- $folder := ternary "partner-bridge-journal" "partner-bridge" (ne .Values.journal.urlSecret "") -}}
{{- printf "/run/secrets/%s/%s" $folder .Values.journal.urlKey -}}
{{- end }}

{{- define "partner-bridge.configMapName" -}}
{{- default (include "partner-bridge.fullname" .) .Values.existingConfigMap -}}
{{- end }}

{{- define "partner-bridge.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end }}

{{/* What the "restricted" pod security standard asks for, and a group that may read the volumes. */}}
{{- define "partner-bridge.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "partner-bridge.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where the pod may run, and by whose leave its image is pulled. */}}
{{- define "partner-bridge.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Pods apart from each other, over zones and over nodes. A node that is gone does not count, so that the loss of a
     zone holds up nobody's replacement; and only pods of one revision are compared, or a rolling update would leave
     them crooked. */}}
{{- define "partner-bridge.spread" -}}
{{- $zones := ternary "DoNotSchedule" "ScheduleAnyway" (eq .Values.topologySpread "required") -}}
{{- range list (list "topology.kubernetes.io/zone" $zones) (list "kubernetes.io/hostname" "ScheduleAnyway") }}
- maxSkew: 1
  topologyKey: {{ first . }}
  whenUnsatisfiable: {{ last . }}
  nodeTaintsPolicy: Honor
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "partner-bridge.selectorLabels" $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* Names of the service's pods, as a regular expression: a StatefulSet numbers them, a Deployment appends a hash and
     five characters, and cuts a long name with the hyphen between these. */}}
{{- define "partner-bridge.podNames" -}}
{{- include "partner-bridge.fullname" . }}-{{ ternary "[0-9]+" "[a-z0-9]+-?[a-z0-9]{5}" (eq .Values.journal.type "sqlite") }}
{{- end }}

{{/* preStop and SIGTERM share one clock: the pause, the drain, the 4 s that the process may take beyond it,
     and 6 s for a slow node. */}}
{{- define "partner-bridge.graceSeconds" -}}
{{- add (int .Values.shutdown.preStopSeconds) (int .Values.shutdown.drainSeconds) 4 6 -}}
{{- end }}

{{/* What the service reads at its start only, whoever tells it to reload. */}}
{{- define "partner-bridge.fixed" -}}
workers: {{ int .Values.server.workers }}
threads: {{ int .Values.server.threads }}
drain_timeout: {{ int .Values.shutdown.drainSeconds }}s
{{- end }}

{{/* bridge.yaml: the user's part, and `journal` and `server`, which must agree with the pod around them.
     The addresses, and the place of a journal on a volume, come by environment. */}}
{{- define "partner-bridge.config" -}}
{{- $server := include "partner-bridge.fixed" . | fromYaml -}}
{{- $_ := set $server "max_body" .Values.server.maxBody -}}
{{- with .Values.server.publicUrl }}{{ $_ := set $server "public_url" . }}{{ end -}}
{{- with .Values.server.adminTokenKey -}}
{{- $_ := set $server "admin_token" (dict "file" (printf "/run/secrets/partner-bridge/%s" .)) -}}
{{- end -}}
{{- $journal := dict
      "max_pending" (int .Values.journal.maxPending)
      "max_size" (printf "%dMiB" (div (mul (int .Values.journal.volumeGiB) 1024 8) 10))
      "retention" .Values.journal.retention
      "remember" .Values.journal.remember -}}
{{- if eq .Values.journal.type "postgresql" -}}
{{- $_ := set $journal "url" (dict "file" (include "partner-bridge.journalUrlFile" .)) -}}
{{- $_ := set $journal "max_size" (printf "%dGiB" (int .Values.journal.maxSizeGiB)) -}}
{{- end -}}
{{- $config := omit .Values.config "retry" -}}
{{- with .Values.config.retry }}{{ $_ := set $config "retry" . }}{{ end -}}
{{- toYaml (merge (dict "server" $server "journal" $journal) $config) -}}
{{- end }}

{{/* A source whose webhooks are signed, for `helm test`; empty when none is known. */}}
{{- define "partner-bridge.testSource" -}}
{{- $found := .Values.test.source -}}
{{- range $name, $source := .Values.config.sources -}}
{{- if and (not $found) (ne (dig "verify" "scheme" "none" $source) "none") -}}
{{- $found = $name -}}
{{- end -}}
{{- end -}}
{{- $found -}}
{{- end }}

{{/* What a schema cannot say, or not why: values that do not go together, names that the chart keeps to itself. */}}
{{- define "partner-bridge.refuse" -}}
{{- if and (eq .Values.image.tag "latest") (not .Values.image.digest) -}}
{{- fail "image.tag latest: a restart must not be an upgrade; name a version, or the image.digest." -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name (list "BRIDGE_CONFIG" "BRIDGE_BIND" "BRIDGE_ADMIN_BIND" "BRIDGE_JOURNAL_URL" "BRIDGE_LOG_LEVEL" "BRIDGE_LOG_FORMAT" "BRIDGE_RELOAD") -}}
{{- fail (printf "extraEnv %s: the chart sets this variable, from journal, log, reload and the ports that its probes ask." .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraVolumes -}}
{{- if has .name (list "config" "secrets" "tmp" "journal" "journal-url") -}}
{{- fail (printf "extraVolumes %s: the chart has a volume of this name; take another one." .name) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.journal.type "sqlite" -}}
{{- if gt (int .Values.replicas) 1 -}}
{{- fail (printf "replicas %d: a SQLite journal on one volume has one writer, and a second pod would have a journal of its own; use 1 (or 0 to stop) and server.workers for more processes, or journal.type postgresql for more pods." (int .Values.replicas)) -}}
{{- end -}}
{{- if .Values.journal.urlSecret -}}
{{- fail "journal.urlSecret needs journal.type postgresql: with sqlite the journal is a file on the pod's volume." -}}
{{- end -}}
{{- else if or .Values.journal.existingClaim (not .Values.journal.persistent) -}}
{{- fail "journal.type postgresql has no volume: leave journal.existingClaim empty and journal.persistent true." -}}
{{- end -}}
{{- if and (gt (int .Values.replicas) 1) (ge (int .Values.podDisruptionBudget.maxUnavailable) (int .Values.replicas)) -}}
{{- fail (printf "podDisruptionBudget.maxUnavailable must be less than replicas (%d), or draining nodes may leave no pod." (int .Values.replicas)) -}}
{{- end -}}
{{- if and .Values.existingConfigMap .Values.config.sources -}}
{{- fail "existingConfigMap and config.sources: the configuration comes from one of them; remove the other." -}}
{{- end -}}
{{- if and .Values.test.source (not .Values.existingConfigMap) (not (hasKey .Values.config.sources .Values.test.source)) -}}
{{- fail (printf "test.source %s: config.sources has no such entry." .Values.test.source) -}}
{{- end -}}
{{- if and .Values.secret.name .Values.secret.values -}}
{{- fail "secret.name and secret.values: secrets come from an existing Secret or from values; remove one of them." -}}
{{- end -}}
{{- if and .Values.journal.existingClaim (not .Values.journal.persistent) -}}
{{- fail "journal.existingClaim needs journal.persistent: true." -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts: without a host it would take the path /webhooks of every host." -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: the Gateway that serves the route." -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) -}}
{{- fail "podMonitor.enabled needs networkPolicy.metricsFrom: the network policy lets nobody in on the admin port, so nothing could be scraped." -}}
{{- end -}}
{{- end }}
