"""Files into and out of a running sandbox, for `runner cp`; docs/layout-1.md, "Copies".

    out   program ─▶ Incoming (checks every entry) ─▶ Writer, below a directory descriptor │ tar on standard output
    in    Reader, below a directory descriptor │ tar on standard input ─▶ Outgoing ─▶ program

What comes out of a guest is hostile. Where it lies on this machine is decided by the two paths that the user gave, never by
the guest: names are checked before they are used, and nothing is opened by a path that could lead over a link.
"""
