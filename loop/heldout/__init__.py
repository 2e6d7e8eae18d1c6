"""What a policy is measured with: suites, judges that are never the critic, statistics and the gate."""
