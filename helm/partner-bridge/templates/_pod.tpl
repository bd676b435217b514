{{/* What a pod of the service is, whatever keeps its journal: metadata and spec. */}}
{{- define "partner-bridge.pod" -}}
{{- $sqlite := eq .Values.journal.type "sqlite" -}}
metadata:
  # Without the chart's version, which alone is no reason for a restart.
  labels:
    {{- $labels := include "partner-bridge.selectorLabels" . | fromYaml }}
    {{- merge $labels .Values.podLabels .Values.commonLabels | toYaml | nindent 4 }}
  # A changed checksum restarts the pod: by any change, or only by what no reload can change.
  annotations:
    {{- $part := ternary "config" "fixed" (eq .Values.reload "restart") }}
    {{- $read := include (printf "partner-bridge.%s" $part) . }}
    {{- if not $sqlite }}
    {{- $read = cat $read (include "partner-bridge.journalUrlFile" .) }}
    {{- end }}
    {{- $annotations := dict "checksum/config" (sha256sum $read) }}
    {{- merge $annotations .Values.podAnnotations .Values.commonAnnotations | toYaml | nindent 4 }}
spec:
  serviceAccountName: {{ include "partner-bridge.serviceAccountName" . | quote }}
  automountServiceAccountToken: false
  # Service links would put variables of other services into the environment.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "partner-bridge.graceSeconds" . }}
  {{- with include "partner-bridge.placement" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if not $sqlite }}
  topologySpreadConstraints:
    {{- include "partner-bridge.spread" . | trim | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "partner-bridge.podSecurity" . | nindent 4 }}
  containers:
    - name: bridge
      image: {{ include "partner-bridge.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- if .Values.maintenance }}
      # Process 1 hears of SIGTERM only what it asks for.
      command: [sh, -c, "trap 'exit 0' TERM; sleep infinity & wait"]
      {{- else }}
      args: [serve]
      {{- end }}
      env:
        - name: BRIDGE_CONFIG
          value: /etc/partner-bridge/bridge.yaml
        - name: BRIDGE_BIND
          value: "{{ .Values.server.address }}:8080"
        - name: BRIDGE_ADMIN_BIND
          value: "{{ .Values.server.address }}:9090"
        {{- if $sqlite }}
        - name: BRIDGE_JOURNAL_URL
          value: sqlite:////var/lib/partner-bridge/journal.db
        {{- end }}
        - name: BRIDGE_LOG_LEVEL
          value: {{ .Values.log.level }}
        - name: BRIDGE_LOG_FORMAT
          value: {{ .Values.log.format }}
        {{- if eq .Values.reload "watch" }}
        - name: BRIDGE_RELOAD
          value: watch
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: http
          containerPort: 8080
          protocol: TCP
        - name: admin
          containerPort: 9090
          protocol: TCP
      {{- if not .Values.maintenance }}
      # Time for migrations and for recovery of a large journal. Not readiness: a full journal at the start
      # is no reason for a restart.
      startupProbe:
        httpGet: {path: /livez, port: admin}
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: {{ div (add (int .Values.startupSeconds) 1) 2 }}
      # Fails only when the process makes no progress; the CRM's health never shows here.
      livenessProbe:
        httpGet: {path: /livez, port: admin}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      lifecycle:
        preStop:
          # By the image's own sleep: Kubernetes' sleep action is not there before 1.30.
          exec:
            command: [sleep, {{ int .Values.shutdown.preStopSeconds | quote }}]
      {{- end }}
      securityContext:
        {{- include "partner-bridge.containerSecurity" . | nindent 8 }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: journal
          mountPath: /var/lib/partner-bridge
          {{- if not $sqlite }}
          # Nothing may be kept here: a journal.url that names a file would lose it with the pod.
          readOnly: true
          {{- end }}
        # Directories, not single files: a subPath mount would never see a changed Secret.
        - name: config
          mountPath: /etc/partner-bridge
          readOnly: true
        - name: secrets
          mountPath: /run/secrets/partner-bridge
          readOnly: true
        {{- if and (not $sqlite) .Values.journal.urlSecret }}
        - name: journal-url
          mountPath: /run/secrets/partner-bridge-journal
          readOnly: true
        {{- end }}
        - name: tmp
          mountPath: /tmp
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "partner-bridge.configMapName" . | quote }}
    - name: secrets
      secret:
        secretName: {{ include "partner-bridge.secretName" . | quote }}
        # 0440, in a notation that every YAML reads alike.
        defaultMode: 288
    - name: tmp
      emptyDir:
        medium: Memory
        sizeLimit: 64Mi
    {{- if not $sqlite }}
    - name: journal
      emptyDir:
        sizeLimit: 1Mi
    {{- with .Values.journal.urlSecret }}
    - name: journal-url
      secret:
        secretName: {{ . | quote }}
        defaultMode: 288
        # Of a Secret that another program made, only what concerns us.
        items:
          - {key: {{ $.Values.journal.urlKey | quote }}, path: {{ $.Values.journal.urlKey | quote }}}
    {{- end }}
    {{- else if not .Values.journal.persistent }}
    - name: journal
      emptyDir:
        sizeLimit: {{ int .Values.journal.volumeGiB }}Gi
    {{- else if .Values.journal.existingClaim }}
    - name: journal
      persistentVolumeClaim:
        claimName: {{ .Values.journal.existingClaim | quote }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
