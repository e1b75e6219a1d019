//! Asks the three metrics APIs (upstream's `rest_metrics_client.go`).

use super::replicas::{PodMetric, PodMetrics};
use api::quantity::Quantity;
use http::Request;
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier, MetricSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::core::Selector;
use kube::{Client, discovery};
use serde_json::Value;
use std::fmt::Write;

/// Of custom metrics that don't say over which time they were measured.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);

/// What an API said about one metric.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    Pods(PodMetrics),
    /// Of an object, or the sum of an external metric; in thousandths.
    Value(i64),
}

/// Errors are upstream's words.
pub async fn read(
    client: &Client,
    spec: &MetricSpec,
    namespace: &str,
    selector: &str,
) -> Result<Reading, String> {
    if let Some(source) = &spec.resource {
        return of_resource(client, &source.name, None, namespace, selector).await;
    }
    if let Some(source) = &spec.container_resource {
        return of_resource(client, &source.name, Some(&source.container), namespace, selector).await;
    }
    if let Some(source) = &spec.pods {
        let path = format!("namespaces/{namespace}/pods/*/{}", source.metric.name);
        let items = custom(client, &path, Some(selector), &source.metric)
            .await
            .map_err(|error| format!("unable to get metric {}: {error}", source.metric.name))?;
        return Ok(Reading::Pods(items.iter().filter_map(custom_of_pod).collect()));
    }
    if let Some(source) = &spec.object {
        let (name, of) = (&source.metric.name, &source.described_object);
        return of_object(client, &source.metric, of, namespace)
            .await
            .map(Reading::Value)
            .map_err(|error| {
                format!(
                    "unable to get metric {name}: {error} on {} {namespace}/{}",
                    of.kind, of.name
                )
            });
    }
    let Some(source) = &spec.external else {
        return Err(format!("unknown metric source type {:?}", spec.type_));
    };
    let (name, selector) = (&source.metric.name, source.metric.selector.as_ref());
    external(client, name, selector, namespace)
        .await
        .map(Reading::Value)
        .map_err(|error| {
            let selector = go_selector(selector);
            format!("unable to get external metric {namespace}/{name}/{selector}: {error}")
        })
}

async fn of_resource(
    client: &Client,
    resource: &str,
    container: Option<&str>,
    namespace: &str,
    selector: &str,
) -> Result<Reading, String> {
    let failed = |error: String| format!("unable to get metrics for resource {resource}: {error}");
    let query = encode(selector);
    let url = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={query}");
    let items = items(client, &url, "get pods.metrics.k8s.io")
        .await
        .map_err(|error| {
            failed(format!(
                "unable to fetch metrics from resource metrics API: {error}"
            ))
        })?;
    if items.is_empty() {
        return Err(failed("no metrics returned from resource metrics API".to_owned()));
    }
    resource_metrics(&items, resource, container)
        .map(Reading::Pods)
        .map_err(failed)
}

/// The sum of each pod's containers, or one of them; pods that don't speak of the resource are left out.
fn resource_metrics(items: &[Value], resource: &str, container: Option<&str>) -> Result<PodMetrics, String> {
    let mut metrics = PodMetrics::new();
    for item in items {
        let name = item["metadata"]["name"].as_str().unwrap_or_default();
        let containers = item["containers"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let wanted: Vec<&Value> = containers
            .iter()
            .filter(|one| container.is_none_or(|container| one["name"] == container))
            .collect();
        if let (Some(container), true) = (container, wanted.is_empty()) {
            let namespace = item["metadata"]["namespace"].as_str().unwrap_or_default();
            return Err(format!(
                "failed to get container metrics: container {container} not present in metrics for pod \
                 {namespace}/{name}"
            ));
        }
        let amounts: Option<Vec<i64>> = wanted.iter().map(|one| milli(&one["usage"][resource])).collect();
        if let Some(amounts) = amounts.filter(|amounts| !amounts.is_empty()) {
            let window = item["window"].as_str().and_then(api::duration::parse);
            let metric = PodMetric {
                at: time(&item["timestamp"]),
                window: window.and_then(|w| w.try_into().ok()).unwrap_or_default(),
                value: amounts.iter().sum(),
            };
            metrics.insert(name.to_owned(), metric);
        }
    }
    Ok(metrics)
}

fn custom_of_pod(item: &Value) -> Option<(String, PodMetric)> {
    let metric = PodMetric {
        at: time(&item["timestamp"]),
        window: item["windowSeconds"]
            .as_i64()
            .map_or(WINDOW, SignedDuration::from_secs),
        value: milli(&item["value"])?,
    };
    Some((item["describedObject"]["name"].as_str()?.to_owned(), metric))
}

async fn of_object(
    client: &Client,
    metric: &MetricIdentifier,
    of: &CrossVersionObjectReference,
    namespace: &str,
) -> Result<i64, String> {
    let group = crate::scale::group_of(of.api_version.as_deref().unwrap_or("v1")).unwrap_or_default();
    let path = if of.kind == "Namespace" && group.is_empty() {
        format!("namespaces/{namespace}/metrics/{}", metric.name)
    } else {
        let found = discovery::group(client, if group.is_empty() { "core" } else { group })
            .await
            .map_err(|error| error.to_string())?;
        let (resource, _) = found
            .recommended_kind(&of.kind)
            .ok_or_else(|| format!("no matches for kind {:?} in group {group:?}", of.kind))?;
        let plural = match group {
            "" => resource.plural,
            group => format!("{}.{group}", resource.plural),
        };
        format!("namespaces/{namespace}/{plural}/{}/{}", of.name, metric.name)
    };
    let items = custom(client, &path, None, metric).await?;
    match &items[..] {
        [one] => milli(&one["value"]).ok_or_else(|| format!("{} is not a quantity", one["value"])),
        many => Err(format!(
            "unable to fetch metrics from custom metrics API: the custom metrics API server returned {} results when \
             we asked for exactly one",
            many.len()
        )),
    }
}

async fn custom(
    client: &Client,
    path: &str,
    pods: Option<&str>,
    metric: &MetricIdentifier,
) -> Result<Vec<Value>, String> {
    let failed = |error: String| format!("unable to fetch metrics from custom metrics API: {error}");
    let root = "/apis/custom.metrics.k8s.io";
    let group = get(client, root, "get custom.metrics.k8s.io")
        .await
        .map_err(failed)?;
    let version = group["preferredVersion"]["version"].as_str().unwrap_or("v1beta2");
    let mut url = format!(
        "{root}/{version}/{path}?metricLabelSelector={}",
        encode(&text(metric.selector.as_ref())?)
    );
    if let Some(pods) = pods {
        url.push_str("&labelSelector=");
        url.push_str(&encode(pods));
    }
    let what = format!(
        "get {}.custom.metrics.k8s.io",
        if pods.is_some() { "pods" } else { "objects" }
    );
    let items = items(client, &url, &what).await.map_err(failed)?;
    match items.is_empty() {
        true => Err("no metrics returned from custom metrics API".to_owned()),
        false => Ok(items),
    }
}

async fn external(
    client: &Client,
    name: &str,
    selector: Option<&LabelSelector>,
    namespace: &str,
) -> Result<i64, String> {
    let query = encode(&text(selector)?);
    let url =
        format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{name}?labelSelector={query}");
    let items = items(client, &url, &format!("get {name}.external.metrics.k8s.io"))
        .await
        .map_err(|error| format!("unable to fetch metrics from external metrics API: {error}"))?;
    if items.is_empty() {
        return Err("no metrics returned from external metrics API".to_owned());
    }
    let values = items.iter().filter_map(|item| milli(&item["value"]));
    Ok(values.fold(0, i64::saturating_add))
}

async fn items(client: &Client, url: &str, what: &str) -> Result<Vec<Value>, String> {
    let mut list = get(client, url, what).await?;
    match list["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

/// `what` is how client-go names the request when the server has no words of its own.
async fn get(client: &Client, url: &str, what: &str) -> Result<Value, String> {
    let request = Request::get(url)
        .header(http::header::ACCEPT, "application/json")
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    client.request(request).await.map_err(|error| match error {
        kube::Error::Api(status)
            if status.code == 404 && status.details.as_ref().is_none_or(|d| d.name.is_empty()) =>
        {
            format!("the server could not find the requested resource ({what})")
        }
        kube::Error::Api(status) if status.code == 503 => {
            format!("the server is currently unable to handle the request ({what})")
        }
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    })
}

fn milli(value: &Value) -> Option<i64> {
    let quantity: Quantity = value.as_str()?.parse().ok()?;
    Some(quantity.milli_value())
}

fn time(value: &Value) -> Timestamp {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or(Timestamp::MIN)
}

fn text(selector: Option<&LabelSelector>) -> Result<String, String> {
    let Some(selector) = selector else {
        return Ok(String::new());
    };
    Selector::try_from(selector.clone())
        .map(|selector| selector.to_string())
        .map_err(|error| error.to_string())
}

/// For a query: everything but what RFC 3986 leaves unreserved.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// A selector as Go prints it in messages.
pub fn go_selector(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else {
        return "nil".to_owned();
    };
    let labels = selector.match_labels.iter().flatten();
    let labels: String = labels.map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions = selector.match_expressions.iter().flatten();
    let expressions: String = expressions
        .map(|one| {
            let values = one.values.as_deref().unwrap_or_default().join(" ");
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
                one.key, one.operator
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},\
         MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn pods_are_the_sums_of_their_containers() {
        let pod = |name: &str, cpus: &[Option<&str>]| {
            let containers: Vec<Value> = cpus
                .iter()
                .enumerate()
                .map(|(at, cpu)| json!({"name": format!("c{at}"), "usage": {"cpu": cpu}}))
                .collect();
            json!({"metadata": {"name": name, "namespace": "n"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15.5s",
                "containers": containers})
        };
        let items = [
            pod("a", &[Some("100m"), Some("2")]),
            pod("b", &[Some("1500000n"), None]),
            pod("c", &[]),
        ];
        let metrics = resource_metrics(&items, "cpu", None).unwrap();
        let metric = PodMetric {
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            window: SignedDuration::from_millis(15_500),
            value: 2100,
        };
        assert_eq!(metrics, PodMetrics::from([("a".to_owned(), metric)]));
        let one = resource_metrics(&items[..2], "cpu", Some("c0")).unwrap();
        assert_eq!((one["a"].value, one["b"].value), (100, 2));
        let error = resource_metrics(&items, "cpu", Some("c1")).unwrap_err();
        assert!(
            error.ends_with("container c1 not present in metrics for pod n/c"),
            "{error}"
        );
    }

    #[test]
    fn selectors_in_queries_and_messages() {
        let selector: LabelSelector = from_value(json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}]}))
        .unwrap();
        assert_eq!(
            encode(&text(Some(&selector)).unwrap())
                .replace("%2C", ",")
                .replace("%20", " "),
            "a%3Db,c in %28d,e%29"
        );
        let want = "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{\
                    LabelSelectorRequirement{Key:c,Operator:In,Values:[d e],},},}";
        assert_eq!(go_selector(Some(&selector)), want);
        assert_eq!(go_selector(None), "nil");
    }
}
