//! The status as OpenMetrics text, for Prometheus.
//!
//! In: one [`Status`]. Out: text in which each metric of [`table`] stands once, with its help, type and unit, and a
//! sample for each VM, tier, image or source that the status has. Nothing is counted here: what the status does not
//! know has no sample.
//!
//! Labels: `vm`, `namespace` (where there is one) and `id`, since names may be used twice and ids are not; `tier`;
//! `source`; of an image `tenant`, `image`, `device` and `inode`. No label is a page, an address or a content tag, and
//! none is another VM.

mod table;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    CounterValueEncoder, DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, GaugeValueEncoder,
    MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::status::{ImageStatus, SourceStatus, Status, TierStatus, VmStatus};

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PREFIX: &str = "tiering";

/// The text of one scrape.
///
/// # Errors
/// None that is known: text can always be written to a string.
pub fn render(status: Arc<Status>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Scrape(status)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// One metric: how it is called and shown, and where in the status it stands.
struct Metric {
    /// Without `tiering_`, the unit, and the `_total` of a counter: these are put around it.
    name: &'static str,
    unit: Option<&'static str>,
    kind: Kind,
    help: &'static str,
    of: Of,
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// What a metric is about, and how its samples are read from that.
enum Of {
    Agent(fn(&Status) -> Samples<'_>),
    Tier(fn(&TierStatus) -> Samples<'_>),
    Vm(fn(&VmStatus) -> Samples<'_>),
    Image(fn(&ImageStatus) -> Samples<'_>),
    Source(fn(&SourceStatus) -> Samples<'_>),
}

type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;
/// Each with the labels that it has besides those of what it is about.
type Samples<'a> = Vec<(Labels<'a>, Number)>;

#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(u64),
    Real(f64),
}

#[derive(Debug)]
struct Scrape(Arc<Status>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in table::METRICS {
            let unit = metric.unit.map(|unit| Unit::Other(unit.to_owned()));
            let mut family =
                encoder.encode_descriptor(metric.name, metric.help, unit.as_ref(), metric.kind.into())?;
            for (labels, number) in metric.of.samples(&self.0) {
                if labels.is_empty() {
                    metric.kind.encode(&mut family, number)?;
                } else {
                    metric.kind.encode(&mut family.encode_family(&labels)?, number)?;
                }
            }
        }
        Ok(())
    }
}

impl Of {
    fn samples<'a>(&self, status: &'a Status) -> Samples<'a> {
        match self {
            Self::Agent(read) => read(status),
            Self::Tier(read) => each(&status.tiers, tier_labels, *read),
            Self::Vm(read) => each(&status.vms, vm_labels, *read),
            Self::Image(read) => each(&status.images, image_labels, *read),
            Self::Source(read) => each(&status.sources, source_labels, *read),
        }
    }
}

fn each<'a, T>(items: &'a [T], labels: fn(&T) -> Labels<'_>, read: fn(&T) -> Samples<'_>) -> Samples<'a> {
    let all = items.iter().flat_map(|item| {
        read(item).into_iter().map(move |(own, number)| ([labels(item), own].concat(), number))
    });
    all.collect()
}

fn tier_labels(tier: &TierStatus) -> Labels<'_> {
    vec![("tier", tier.name.as_str().into())]
}

fn vm_labels(vm: &VmStatus) -> Labels<'_> {
    let name = ("vm", vm.name.as_str().into());
    let namespace = vm.namespace.as_deref().map(|namespace| ("namespace", namespace.into()));
    let id = ("id", vm.id.as_str().into());
    [Some(name), namespace, Some(id)].into_iter().flatten().collect()
}

fn image_labels(image: &ImageStatus) -> Labels<'_> {
    vec![
        ("tenant", image.tenant.as_str().into()),
        ("image", image.name.as_str().into()),
        ("device", image.device.as_str().into()),
        ("inode", image.inode.to_string().into()),
    ]
}

fn source_labels(source: &SourceStatus) -> Labels<'_> {
    vec![("source", source.name.as_str().into())]
}

impl Kind {
    fn encode(self, metric: &mut MetricEncoder<'_>, number: Number) -> fmt::Result {
        match self {
            Self::Counter => metric.encode_counter::<NoLabelSet, _, f64>(&number, None),
            Self::Gauge => metric.encode_gauge(&number),
        }
    }
}

impl From<Kind> for MetricType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter,
            Kind::Gauge => Self::Gauge,
        }
    }
}

impl EncodeCounterValue for Number {
    fn encode(&self, encoder: &mut CounterValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => EncodeCounterValue::encode(number, encoder),
            Self::Real(number) => EncodeCounterValue::encode(number, encoder),
        }
    }
}

impl EncodeGaugeValue for Number {
    fn encode(&self, encoder: &mut GaugeValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => EncodeGaugeValue::encode(number, encoder),
            Self::Real(number) => EncodeGaugeValue::encode(number, encoder),
        }
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<bool> for Number {
    fn from(yes: bool) -> Self {
        Self::Whole(yes.into())
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

#[cfg(test)]
mod tests;
