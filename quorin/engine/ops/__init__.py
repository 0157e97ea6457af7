"""Operations: observe a deployment, check it, and decide what the watchdog may reclaim."""
