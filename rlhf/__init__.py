"""What the three stages of the case study share: settings, data, models, decoding, scoring, metrics, figures, outputs."""
