"""Networks, their contract and their export. Only `model.contract` is free of torch."""
