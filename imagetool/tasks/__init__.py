"""Tasks of doit: their graph, actions, receipts and reports."""
