//! Hit rate over capacity as a picture: a curve for each policy, and the optimum above them.

mod canvas;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use plotters::{coord::Shift, prelude::*};

use canvas::Canvas;

/// Pixels, or the units of an SVG.
const SIZE: (u32, u32) = (960, 600);
const FONT: &str = "sans-serif";
/// Up to so many capacities stand at the axis themselves.
const TICKS_MAX: usize = 8;
const TEXT: RGBColor = RGBColor(40, 40, 40);
/// Colours that are told apart by those who see red and green alike (Okabe and Ito); the optimum is grey.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const OPTIMUM: RGBColor = RGBColor(110, 110, 110);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Svg,
    Png,
}

/// A file that a plot is written to, as its name says: .svg or .png.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlotFile {
    path: PathBuf,
    form: Form,
}

/// One policy: capacity in blocks, and hit tokens by input tokens.
#[derive(Clone, Debug)]
pub struct Curve {
    pub name: String,
    pub points: Vec<(u64, f64)>,
}

/// What stands around the curves.
#[derive(Clone, Debug)]
pub struct Labels {
    pub title: String,
    /// Of the axis of capacities.
    pub capacity: String,
}

impl PlotFile {
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("").to_ascii_lowercase();
        let form = match &extension[..] {
            "svg" => Form::Svg,
            "png" => Form::Png,
            _ => return Err(format!("{text:?} ends in neither .svg nor .png, which say how a plot is drawn")),
        };
        Ok(Self { path, form })
    }

    /// An error before anything is replayed, rather than after minutes.
    pub fn check(&self, capacities: &[u64]) -> anyhow::Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ensure!(folder.is_dir(), "--plot {}: there is no folder {}", self.path.display(), folder.display());
        let several = capacities.iter().any(|capacity| *capacity != capacities[0]);
        ensure!(several, "--plot draws over capacities: give two or more with --capacity, like 1k,3k,10k");
        Ok(())
    }

    /// Draws `curves`, the last one being the optimum.
    pub fn write(&self, labels: &Labels, curves: &[Curve]) -> anyhow::Result<()> {
        let bytes = match self.form {
            Form::Svg => {
                let mut text = String::new();
                draw(&SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), labels, curves)?;
                text.into_bytes()
            }
            Form::Png => {
                let mut pixels = Canvas::blank(SIZE);
                draw(&Canvas::new(SIZE, &mut pixels).into_drawing_area(), labels, curves)?;
                canvas::encode(SIZE, &pixels)?
            }
        };
        std::fs::write(&self.path, bytes).with_context(|| format!("writing the plot {}", self.path.display()))
    }
}

/// Capacities by their logarithm, rates from 0 on.
fn draw<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, labels: &Labels, curves: &[Curve]) -> anyhow::Result<()> {
    let wrong = |error: DrawingAreaErrorKind<DB::ErrorType>| anyhow!("drawing the plot: {error}");
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let capacities = points().map(|(capacity, _)| capacity as f64);
    let (least, most) = capacities.fold((f64::MAX, f64::MIN), |(least, most), c| (least.min(c), most.max(c)));
    let mut ticks: Vec<f64> =
        curves.first().into_iter().flat_map(|curve| &curve.points).map(|(c, _)| *c as f64).collect();
    ticks.dedup();
    if ticks.len() > TICKS_MAX {
        ticks = (0..10).map(|power| 10f64.powi(power)).filter(|tick| (least..=most).contains(tick)).collect();
    }
    let top = points().map(|(_, rate)| rate).fold(0.0, f64::max).clamp(0.05, 1.0);
    let text = |size: i32| (FONT, size).into_font().color(&TEXT);

    area.fill(&WHITE).map_err(wrong)?;
    let mut chart = ChartBuilder::on(area)
        .caption(&labels.title, text(27))
        .margin(16)
        .x_label_area_size(58)
        .y_label_area_size(84)
        .build_cartesian_2d((least..most).log_scale().with_key_points(ticks), 0.0..top * 1.05)
        .map_err(wrong)?;
    chart
        .configure_mesh()
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(TRANSPARENT)
        .axis_style(TEXT)
        .label_style(text(20))
        .x_desc(&labels.capacity)
        .x_labels(16)
        .x_label_formatter(&|capacity| short(*capacity))
        .y_desc("hit tokens / input tokens")
        .y_label_formatter(&|rate| format!("{:.0} %", rate * 100.0))
        .draw()
        .map_err(wrong)?;
    for (index, curve) in curves.iter().enumerate() {
        let colour = if index + 1 == curves.len() { OPTIMUM } else { COLOURS[index % COLOURS.len()] };
        let points: Vec<(f64, f64)> = curve.points.iter().map(|(capacity, rate)| (*capacity as f64, *rate)).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))
            .map_err(wrong)?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|at| Circle::new(*at, 4, colour.filled()))).map_err(wrong)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .margin(14)
        .legend_area_size(30)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(190, 190, 190))
        .label_font(text(20))
        .draw()
        .map_err(wrong)?;
    area.present().map_err(wrong)
}

/// "30k" of 30 000.
fn short(blocks: f64) -> String {
    let parts = [(1e6, "M"), (1e3, "k"), (1.0, "")];
    let (scale, unit) = parts.into_iter().find(|(scale, _)| blocks >= *scale).unwrap_or((1.0, ""));
    format!("{}{unit}", (blocks / scale * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves() -> Vec<Curve> {
        let curve = |name: &str, rates: [f64; 3]| Curve {
            name: name.into(),
            points: [1_000, 3_000, 10_000].into_iter().zip(rates).collect(),
        };
        vec![curve("lru", [0.05, 0.07, 0.22]), curve("arc", [0.06, 0.09, 0.23]), curve("opt", [0.19, 0.3, 0.37])]
    }

    fn written(name: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        let file = PlotFile::parse(path.to_str().expect("a name")).expect("a form that is known");
        file.check(&[1_000, 3_000]).expect("a folder that is there");
        let labels = Labels { title: "conversation".into(), capacity: "blocks".into() };
        file.write(&labels, &curves()).expect("a plot");
        std::fs::read(&path).expect("the file")
    }

    #[test]
    fn an_svg_names_every_curve_and_needs_nothing_else() {
        let text = String::from_utf8(written("a.svg")).expect("text");
        for word in ["<svg", "conversation", "lru", "arc", "opt", "10k", "hit tokens", "</svg>"] {
            assert!(text.contains(word), "no {word}");
        }
        assert!(!text.contains("href"));
    }

    #[test]
    fn a_png_is_of_that_size_and_has_all_colours() {
        let bytes = written("a.PNG");
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("it fits")];
        let info = reader.next_frame(&mut pixels).expect("pixels");
        assert_eq!((info.width, info.height), SIZE);
        for RGBColor(r, g, b) in [WHITE, COLOURS[0], COLOURS[1], OPTIMUM, TEXT] {
            assert!(pixels.chunks(3).any(|pixel| pixel == [r, g, b]), "no {r} {g} {b}");
        }
    }

    #[test]
    fn a_plot_is_drawn_as_its_name_says() {
        assert_eq!(PlotFile::parse("a/b.SVG").expect("a form").form, Form::Svg);
        for wrong in ["plot", "plot.pdf", ".svg", ""] {
            assert!(PlotFile::parse(wrong).expect_err("no form").contains("neither .svg nor .png"), "{wrong:?}");
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_said_before() {
        let of = |path: &str, capacities: &[u64]| {
            PlotFile::parse(path).expect("a form").check(capacities).map_err(|e| e.to_string())
        };
        assert!(of("no/such/folder/a.svg", &[1, 2]).expect_err("no folder").contains("no folder no/such/folder"));
        assert!(of("a.svg", &[5, 5]).expect_err("one point").contains("--capacity"));
        assert_eq!(of("a.svg", &[1, 2]), Ok(()));
    }
}
