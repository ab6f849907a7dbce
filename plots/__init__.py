"""Pictures of flows on the plane, drawn from arrays alone and without a display."""
