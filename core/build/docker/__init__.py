"""Docker builds: Dockerfiles and build contexts as data, and the engines that build them."""
