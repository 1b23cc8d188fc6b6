"""From a request to a record: plan, run, sweep, study."""
