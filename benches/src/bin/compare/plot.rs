//! The plots of a record: what a flood costs, latency by percentile, cost against rate.
//!
//! Every mark is a median; every whisker goes from the least to the greatest value.
//!
//! Never: a number that is not in the record.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::record::{Key, Record};
use crate::summary::median;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 960;
const FONT: &str = "sans-serif";

/// Draws all of them into `dir`; those for which the record has nothing are left out.
pub fn write(record: &Record, dir: &Path) -> Result<()> {
    let draw = |name: &str, height, draw: &dyn Fn(&Area) -> Result<()>| -> Result<()> {
        let path = dir.join(name);
        let area = SVGBackend::new(&path, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(fault)?;
        draw(&area)?;
        area.present().map_err(fault)
    };
    let keys = record.keys();
    let of = |name: &str| keys.iter().filter(|key| key.measurement == name).cloned().collect::<Vec<Key>>();
    let flood = of("flood");
    if !flood.is_empty() {
        let height = 70 + 24 * flood.len() as u32;
        draw("flood.svg", height, &|area| flood_bars(record, &flood, area))?;
    }
    if !of("paced").is_empty() {
        draw("rates.svg", 420, &|area| rates(record, &of("paced"), area))?;
    }
    if !record.latencies.is_empty() {
        draw("latency.svg", 420, &|area| latencies(record, area))?;
    }
    Ok(())
}

/// The same colour for a variant in every plot: blue ours, orange and red tokio's, green the official client, grey the
/// floor. Lighter when it spins or does not coalesce.
fn colour(variant: &str) -> RGBColor {
    match variant {
        "service" => RGBColor(31, 90, 180),
        "service, spinning" | "service, not coalescing" => RGBColor(110, 170, 240),
        "service, sleeping in glommio" => RGBColor(170, 205, 250),
        "tokio per core" => RGBColor(225, 115, 20),
        "tokio per core, spinning" | "tokio per core, not coalescing" => RGBColor(250, 185, 120),
        "tokio stealing" => RGBColor(190, 40, 45),
        "async-nats" => RGBColor(50, 145, 70),
        _ => RGBColor(130, 130, 130),
    }
}

fn flood_bars(record: &Record, keys: &[Key], area: &Area) -> Result<()> {
    let (left, right) = area.split_horizontally(560);
    bars(record, keys, "per_second", 1e3, 0, "flood: messages/s, in thousands", 170, &left)?;
    bars(record, keys, "cpu_s_per_million", 1.0, 2, "CPU seconds per million messages", 10, &right)
}

/// One row a key, with its name in the first `margin` pixels if that is enough for it.
#[allow(clippy::too_many_arguments)]
fn bars(
    record: &Record,
    keys: &[Key],
    column: &str,
    unit: f64,
    digits: usize,
    title: &str,
    margin: i32,
    area: &Area,
) -> Result<()> {
    const ROW: i32 = 24;
    const TOP: i32 = 44;
    const ROOM_FOR_NUMBER: i32 = 70;
    let all: Vec<Vec<f64>> = keys.iter().map(|key| record.values(key, column)).collect();
    let greatest = all.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let width = area.dim_in_pixel().0 as i32 - margin - ROOM_FOR_NUMBER;
    let at = |value: f64| margin + (value / greatest * f64::from(width)) as i32;
    text(area, title, (margin, 14), 15)?;
    for (row, (key, values)) in keys.iter().zip(&all).enumerate() {
        let y = TOP + ROW * row as i32;
        if margin > 100 {
            let cores = if key.cores == 1 { "1 core" } else { &format!("{} cores", key.cores) };
            text(area, &format!("{}, {cores}", key.variant), (8, y + 5), 13)?;
        }
        if values.is_empty() {
            continue;
        }
        let middle = median(values);
        let bar = Rectangle::new([(margin, y), (at(middle), y + 18)], colour(&key.variant).filled());
        area.draw(&bar).map_err(fault)?;
        let (least, most) = (at(values[0]), at(values[values.len() - 1]));
        for line in [
            [(least, y + 9), (most, y + 9)],
            [(least, y + 5), (least, y + 13)],
            [(most, y + 5), (most, y + 13)],
        ] {
            area.draw(&PathElement::new(line, BLACK)).map_err(fault)?;
        }
        text(area, &format!("{:.digits$}", middle / unit), (most.max(at(middle)) + 6, y + 5), 13)?;
    }
    Ok(())
}

fn rates(record: &Record, keys: &[Key], area: &Area) -> Result<()> {
    let mut cores: Vec<usize> = keys.iter().map(|key| key.cores).collect();
    cores.dedup();
    cores.sort_unstable();
    cores.dedup();
    let all: Vec<f64> = keys.iter().flat_map(|key| record.values(key, "cpu_s_per_million")).collect();
    let (low, high) = bounds(&all);
    let (slow, fast) = bounds(&keys.iter().map(|key| key.rate).collect::<Vec<_>>());
    for (area, cores) in area.split_evenly((1, cores.len())).iter().zip(cores) {
        let title =
            format!("CPU seconds per million messages, {cores} core{}", if cores == 1 { "" } else { "s" });
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 15))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d((slow * 0.8..fast * 1.25).log_scale(), (low * 0.8..high * 1.3).log_scale())
            .map_err(fault)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("messages per second")
            .x_label_formatter(&|rate| thousands(*rate))
            .y_label_formatter(&|seconds| plain(*seconds))
            .label_style((FONT, 12))
            .draw()
            .map_err(fault)?;
        for variant in variants(keys.iter().filter(|key| key.cores == cores)) {
            let colour = colour(&variant);
            let points: Vec<(f64, Vec<f64>)> = keys
                .iter()
                .filter(|key| key.cores == cores && key.variant == variant)
                .map(|key| (key.rate, record.values(key, "cpu_s_per_million")))
                .filter(|(_, values)| !values.is_empty())
                .collect();
            let line = points.iter().map(|(rate, values)| (*rate, median(values)));
            let series = LineSeries::new(line, colour.stroke_width(2)).point_size(3);
            chart
                .draw_series(series)
                .map_err(fault)?
                .label(&variant)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(3)));
            let whiskers = points.iter().map(|(rate, values)| {
                PathElement::new(
                    [(*rate, values[0]), (*rate, values[values.len() - 1])],
                    colour.stroke_width(1),
                )
            });
            chart.draw_series(whiskers).map_err(fault)?;
        }
        legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    }
    Ok(())
}

fn latencies(record: &Record, area: &Area) -> Result<()> {
    let mut layouts: Vec<(String, usize)> = Vec::new();
    for latencies in &record.latencies {
        let layout = (latencies.key.layout.clone(), latencies.key.cores);
        if !layouts.contains(&layout) {
            layouts.push(layout);
        }
    }
    let all: Vec<f64> = record
        .latencies
        .iter()
        .flat_map(|latencies| latencies.points.iter().map(|(_, micros)| *micros))
        .collect();
    let (low, high) = bounds(&all);
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-9).log10();
    let most = record
        .latencies
        .iter()
        .flat_map(|latencies| latencies.points.last())
        .map(|(percentile, _)| nines(*percentile));
    let most = most.fold(1.0, f64::max);
    for (area, (layout, cores)) in area.split_evenly((1, layouts.len())).iter().zip(layouts) {
        let place = if layout == "apart" { "a CPU of its own" } else { "CPUs shared with server and load" };
        let plural = if cores == 1 { "" } else { "s" };
        let mut chart = ChartBuilder::on(area)
            .caption(format!("µs from request to digest: {cores} core{plural}, {place}"), (FONT, 15))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..most, (low * 0.9..high * 1.1).log_scale())
            .map_err(fault)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("percentile")
            .x_label_formatter(&|nines| percentile(*nines))
            .y_label_formatter(&|micros| plain(*micros))
            .x_labels(4)
            .label_style((FONT, 12))
            .draw()
            .map_err(fault)?;
        let of_layout = record
            .latencies
            .iter()
            .filter(|latencies| latencies.key.layout == layout && latencies.key.cores == cores);
        for latencies in of_layout {
            let colour = colour(&latencies.key.variant);
            let line = latencies.points.iter().map(|(percentile, micros)| (nines(*percentile), *micros));
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))
                .map_err(fault)?
                .label(&latencies.key.variant)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(3)));
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
    }
    Ok(())
}

fn legend<'a, 'b, C: plotters::coord::CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, C>,
    position: SeriesLabelPosition,
) -> Result<()>
where
    'b: 'a,
{
    let mut labels = chart.configure_series_labels();
    labels.position(position).label_font((FONT, 12)).background_style(WHITE.mix(0.7));
    labels.draw().map_err(fault)
}

fn variants<'a>(keys: impl Iterator<Item = &'a Key>) -> Vec<String> {
    let mut variants: Vec<String> = Vec::new();
    for key in keys {
        if !variants.contains(&key.variant) {
            variants.push(key.variant.clone());
        }
    }
    variants
}

fn bounds(values: &[f64]) -> (f64, f64) {
    let positive = values.iter().copied().filter(|value| *value > 0.0);
    let low = positive.clone().fold(f64::MAX, f64::min);
    let high = positive.fold(f64::MIN_POSITIVE, f64::max);
    if low > high { (1.0, 10.0) } else { (low, high) }
}

fn thousands(rate: f64) -> String {
    format!("{} k", plain(rate / 1e3))
}

fn plain(value: f64) -> String {
    let digits = if value >= 1.0 { 0 } else { (-value.log10().floor()) as usize };
    format!("{value:.digits$}")
}

/// 0 %, 90 %, 99 %, 99.9 %: one more nine for each step.
fn percentile(nines: f64) -> String {
    let percentile = 100.0 * (1.0 - 10f64.powf(-nines));
    let digits = (nines.ceil() as usize).saturating_sub(2);
    format!("{percentile:.digits$} %")
}

fn text(area: &Area, text: &str, at: (i32, i32), size: i32) -> Result<()> {
    area.draw(&Text::new(text.to_owned(), at, (FONT, size))).map_err(fault)
}

/// plotters' errors borrow what they are about.
fn fault(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}
