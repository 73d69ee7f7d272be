"""Machines that were saved before they touched their disk, and sandboxes that continue from them; docs/explanation/templates.md."""
