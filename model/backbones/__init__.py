"""Networks that were made to classify, as feature extractors for the FCN heads."""
