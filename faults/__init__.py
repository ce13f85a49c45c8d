"""What the package does with damaged input and with kills: ``python -m faults`` (``make faults``)."""
