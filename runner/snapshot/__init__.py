"""Machines that were saved while their programs ran, and sandboxes that go on from them; docs/adr/0018-snapshots.md."""
