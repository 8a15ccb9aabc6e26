//! What labels say of a VM's work.

use std::collections::BTreeMap;

use crate::config::Class;

/// By key.
pub type Labels = BTreeMap<String, String>;

/// The class by its name.
const CLASS: &str = "tiering.dev/class";
/// Recommended labels of Kubernetes: the application's name, and its part in something larger
/// (<https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/>).
const NAME: &str = "app.kubernetes.io/name";
const COMPONENT: &str = "app.kubernetes.io/component";

/// Applications by which a VM's work is known.
const APPLICATIONS: [(Class, &[&str]); 6] = [
    (
        Class::Database,
        &[
            "cassandra",
            "cockroachdb",
            "couchdb",
            "elasticsearch",
            "etcd",
            "influxdb",
            "mariadb",
            "mongodb",
            "mssql",
            "mysql",
            "neo4j",
            "opensearch",
            "oracle",
            "percona",
            "postgres",
            "postgresql",
            "scylladb",
            "tidb",
            "timescaledb",
        ],
    ),
    (
        Class::Web,
        &[
            "apache",
            "apache2",
            "caddy",
            "envoy",
            "haproxy",
            "httpd",
            "nginx",
            "tomcat",
            "traefik",
            "webserver",
            "wordpress",
        ],
    ),
    (Class::Cache, &["dragonfly", "keydb", "memcached", "redis", "valkey", "varnish"]),
    (
        Class::Batch,
        &["airflow", "analytics", "clickhouse", "dask", "flink", "hadoop", "presto", "spark", "trino"],
    ),
    (Class::Build, &["buildkit", "gitlab-runner", "jenkins", "runner", "teamcity"]),
    (Class::Desktop, &["guacamole", "vdi", "xrdp"]),
];

/// The class that labels give a VM, if they do: the one that is named, else that of the application, else that of
/// the component.
pub fn of_labels(labels: &Labels) -> Option<Class> {
    let of = |key: &str| labels.get(key).map(|value| value.trim().to_ascii_lowercase());
    let application = |key: &str| {
        let value = of(key)?;
        // `postgresql-ha` is a PostgreSQL.
        let first = value.split(['-', '_', '.']).next()?;
        [value.as_str(), first].into_iter().find_map(of_application)
    };
    of(CLASS)
        .and_then(|name| Class::named(&name))
        .or_else(|| application(NAME))
        .or_else(|| application(COMPONENT))
}

fn of_application(name: &str) -> Option<Class> {
    let known = APPLICATIONS.iter().find(|(_, names)| names.contains(&name)).map(|(class, _)| *class);
    known.or_else(|| Class::named(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[(&str, &str)]) -> Option<Class> {
        of_labels(&labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_named_class_comes_before_the_application_and_that_before_the_component() {
        assert_eq!(of(&[(CLASS, "idle"), (NAME, "redis")]), Some(Class::Idle));
        assert_eq!(of(&[(NAME, "redis"), (COMPONENT, "database")]), Some(Class::Cache));
        assert_eq!(of(&[(NAME, "shop"), (COMPONENT, "database")]), Some(Class::Database));
        assert_eq!(of(&[(NAME, "PostgreSQL-HA")]), Some(Class::Database));
        assert_eq!(of(&[(NAME, "gitlab-runner")]), Some(Class::Build));
    }

    #[test]
    fn labels_that_say_nothing_of_it_are_passed_over() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(NAME, "shop"), ("tier", "database")]), None);
        assert_eq!(
            of(&[(CLASS, "databse"), (NAME, "nginx")]),
            Some(Class::Web),
            "a class that does not exist"
        );
        assert_eq!(of(&[(NAME, "")]), None);
    }
}
