"""What people see of a run: metrics, logs, tables, where the time went."""
