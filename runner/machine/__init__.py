"""Virtual machines: QEMU, libkrun, and the processes that serve them."""
