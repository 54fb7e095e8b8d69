#!/bin/sh
# The entry point of docker/spark.Dockerfile: `executor`, as Spark's scheduler on Kubernetes starts a pod, becomes an
# executor of the installed pyspark; anything else is run as a command (`wit build ...` in a driver's pod, YARN's shell).
# The variables are those of org.apache.spark.deploy.k8s.features.BasicExecutorFeatureStep, Spark 3.5.
set -eu
if [ "${1:-}" != executor ]; then
  exec "$@"
fi
SPARK_HOME=${SPARK_HOME:-$(python -c 'import importlib.util as u; print(u.find_spec("pyspark").submodule_search_locations[0])')}
export SPARK_HOME
# SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1 ...: one option each, which may contain spaces.
set --
number=0
while eval "[ -n \"\${SPARK_JAVA_OPT_$number+set}\" ]"; do
  eval "set -- \"\$@\" \"\$SPARK_JAVA_OPT_$number\""
  number=$((number + 1))
done
exec "${JAVA_HOME:+$JAVA_HOME/bin/}java" "$@" \
  -Xms"$SPARK_EXECUTOR_MEMORY" -Xmx"$SPARK_EXECUTOR_MEMORY" \
  -cp "${SPARK_EXTRA_CLASSPATH:+$SPARK_EXTRA_CLASSPATH:}$SPARK_HOME/jars/*${SPARK_CONF_DIR:+:$SPARK_CONF_DIR}" \
  org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
  --driver-url "$SPARK_DRIVER_URL" \
  --executor-id "$SPARK_EXECUTOR_ID" \
  --cores "$SPARK_EXECUTOR_CORES" \
  --app-id "$SPARK_APPLICATION_ID" \
  --hostname "$SPARK_EXECUTOR_POD_IP" \
  --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" \
  --podName "$SPARK_EXECUTOR_POD_NAME"
