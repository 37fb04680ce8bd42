"""The data plane: what runs on a KVM host, as one program without Airflow.

The package is packed into ``hyperflow-kvmhost.pyz`` and sent to the host under its content hash. It runs on the host's
own ``/usr/bin/python3`` (3.9 or newer) and imports the standard library, and ``guestfs`` and ``nbd`` of the host's
distribution where a stage needs them. It imports nothing else of Hyperflow, and nothing else imports it.
"""
