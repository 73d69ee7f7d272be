"""Machines that were saved while their programs ran, and sandboxes that continue from them; docs/adr/0018-snapshots.md."""
