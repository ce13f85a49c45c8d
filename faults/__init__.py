"""What happens when input is damaged or processes are killed: ``python -m faults`` (``make faults``)."""
