"""What every trainer of bdl shares: data, number of examples, steps, the schedule of T, and figures."""
