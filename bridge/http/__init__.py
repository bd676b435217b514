"""What every HTTP port of ours needs: problems as answers, whole bodies, shared counters, and how a request waits."""
