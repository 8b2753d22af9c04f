"""What holds in every process of the tests."""

import threading

from tqdm import tqdm

# Hazard: tests fork children and kill them. The lock that tqdm makes by itself is a semaphore which forks share: a child
# that dies with it leaves it taken, and whatever shows progress later waits for ever. So does a child that was forked while
# tqdm's monitor had it.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
