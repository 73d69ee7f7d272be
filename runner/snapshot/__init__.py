"""Machines that were saved while their programs ran, and sandboxes that go on from them; docs/explanation/snapshots.md."""
