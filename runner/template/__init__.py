"""Machines that were saved before they touched their disk, and sandboxes that go on from them; docs/explanation/templates.md."""
