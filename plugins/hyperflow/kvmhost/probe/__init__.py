"""The boot probe: what a guest that was booted on the target's hardware says about itself.

``hyperflow-probe.sh`` runs inside the guest, :mod:`plant` puts it on a throw-away overlay, :mod:`machine` runs
the guest, :mod:`watch` waits for it, :mod:`evidence` reads what it said and compares it with what was expected.
"""
