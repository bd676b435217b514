{{/* A pod of `helm test`. Takes a list: the root, its name, the URL that it asks, the body that it posts, the status
     that it expects. */}}
{{- define "partner-bridge.testPod" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "partner-bridge.fullname" $root }}-test-{{ index . 1 }}
  labels:
    {{- $labels := include "partner-bridge.testLabels" $root | fromYaml }}
    {{- merge $labels $root.Values.commonLabels | toYaml | nindent 4 }}
  annotations:
    {{- $annotations := dict "helm.sh/hook" "test" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" }}
    {{- merge $annotations $root.Values.commonAnnotations | toYaml | nindent 4 }}
spec:
  restartPolicy: Never
  activeDeadlineSeconds: 120
  serviceAccountName: {{ include "partner-bridge.serviceAccountName" $root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with include "partner-bridge.placement" $root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  securityContext:
    {{- include "partner-bridge.podSecurity" $root | nindent 4 }}
  containers:
    - name: test
      image: {{ include "partner-bridge.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [python, -c]
      args:
        - |
          {{- $root.Files.Get "files/ask.py" | nindent 10 }}
      env:
        - name: URL
          value: {{ index . 2 }}
        - name: BODY
          value: {{ index . 3 | quote }}
        - name: EXPECT
          value: {{ index . 4 | quote }}
      securityContext:
        {{- include "partner-bridge.containerSecurity" $root | nindent 8 }}
      resources:
        requests: {cpu: 10m, memory: 32Mi}
        limits: {memory: 64Mi}
{{- end }}
