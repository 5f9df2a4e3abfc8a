"""The evaluation that all stages share: the answers of a policy, the probes of a reward model, published results."""
