"""Who wants to be told what, and the telling: subscriptions, notices in the outbox, their delivery."""
