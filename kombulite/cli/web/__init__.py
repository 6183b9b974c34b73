"""``kombulite web``: the queues of brokers as a small page. It needs the extra ``kombulite[web]``."""
