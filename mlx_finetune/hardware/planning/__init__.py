"""What a run will take: memory, time, disk, and the choices that follow from it."""
