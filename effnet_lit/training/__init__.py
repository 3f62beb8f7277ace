"""Training: the LightningModule, the schedule, fit()."""
