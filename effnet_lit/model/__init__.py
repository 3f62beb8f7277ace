"""Networks: EfficientNet B0-B7 from scratch, the alternatives, published weights, and the model file."""
