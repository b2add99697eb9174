"""Makes replies of label maps, or of the scores behind them: one module for each kind."""
