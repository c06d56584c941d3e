"""What the product is measured with."""
