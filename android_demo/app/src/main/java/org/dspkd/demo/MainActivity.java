package org.dspkd.demo;

import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.ClipData;
import android.content.Intent;
import android.graphics.Bitmap;
import android.graphics.Typeface;
import android.net.Uri;
import android.os.Bundle;
import android.provider.MediaStore;
import android.view.View;
import android.view.ViewGroup;
import android.widget.Button;
import android.widget.ImageView;
import android.widget.ProgressBar;
import android.widget.TextView;
import androidx.core.content.FileProvider;
import java.io.File;
import java.io.IOException;

/** One screen: the model and whether it answers here as it did at export, a picture, and the student's answer. */
public final class MainActivity extends Activity {
    private static final int CHOOSE = 1;
    private static final int PHOTOGRAPH = 2;
    private static final int OPEN = 3;
    private static final String PHOTO = "photo";

    private DemoApp app;
    private TextView modelLine;
    private TextView checkLine;
    private TextView answerLine;
    private TextView timingLine;
    private ImageView seen;
    private ViewGroup answers;
    private Button open;
    private Button choose;
    private Button photograph;
    private Button time;
    private int working;
    private String photo;

    /** Something that takes time, and then what is to be shown. */
    private interface Job {
        Runnable run() throws ArtifactException, IOException;
    }

    @Override
    protected void onCreate(Bundle savedInstanceState) {
        super.onCreate(savedInstanceState);
        setContentView(R.layout.main);
        app = (DemoApp) getApplication();
        modelLine = findViewById(R.id.model_line);
        checkLine = findViewById(R.id.check_line);
        answerLine = findViewById(R.id.answer_line);
        timingLine = findViewById(R.id.timing_line);
        seen = findViewById(R.id.seen);
        answers = findViewById(R.id.answers);
        open = findViewById(R.id.open);
        choose = findViewById(R.id.choose);
        photograph = findViewById(R.id.photograph);
        time = findViewById(R.id.time);
        open.setOnClickListener(view -> startOrExplain(content("*/*"), OPEN));
        choose.setOnClickListener(view -> startOrExplain(content("image/*"), CHOOSE));
        photograph.setOnClickListener(view -> takeAPhoto());
        time.setOnClickListener(view -> measure());

        work(modelLine, () -> {
            DemoApp.Student student = app.load();
            return () -> showStudent(student);
        });
        if (savedInstanceState != null) {
            photo = savedInstanceState.getString(PHOTO);
            if (app.last() != null) {
                show(app.last());
            }
        } else {
            app.worker.execute(() -> ModelFiles.delete(photos()));
            share(getIntent());
        }
    }

    @Override
    protected void onNewIntent(Intent intent) {
        super.onNewIntent(intent);
        share(intent);
    }

    @Override
    protected void onSaveInstanceState(Bundle outState) {
        super.onSaveInstanceState(outState);
        outState.putString(PHOTO, photo);
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        Uri chosen = result == RESULT_OK && data != null ? data.getData() : null;
        if (request == PHOTOGRAPH && photo != null) {
            File file = new File(photos(), photo);
            if (result == RESULT_OK) {
                answer(Uri.fromFile(file));
            }
            // A picture of a patient stays nowhere. After the answer: there is one worker.
            app.worker.execute(file::delete);
        } else if (request == CHOOSE && chosen != null) {
            answer(chosen);
        } else if (request == OPEN && chosen != null) {
            // A file that is refused changes nothing, so the model's own lines stay.
            work(answerLine, () -> {
                DemoApp.Student student = app.open(chosen);
                return () -> showStudent(student);
            });
        }
    }

    private void share(Intent intent) {
        Uri shared = Intent.ACTION_SEND.equals(intent.getAction()) ? intent.getParcelableExtra(Intent.EXTRA_STREAM) : null;
        if (shared != null) {
            answer(shared);
        }
    }

    private static Intent content(String type) {
        return new Intent(Intent.ACTION_GET_CONTENT).addCategory(Intent.CATEGORY_OPENABLE).setType(type);
    }

    private void takeAPhoto() {
        File folder = photos();
        folder.mkdirs();
        photo = System.currentTimeMillis() + ".jpg";
        Uri target = FileProvider.getUriForFile(this, getPackageName() + ".photos", new File(folder, photo));
        Intent intent = new Intent(MediaStore.ACTION_IMAGE_CAPTURE).putExtra(MediaStore.EXTRA_OUTPUT, target)
                .addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION | Intent.FLAG_GRANT_WRITE_URI_PERMISSION);
        // Flags speak of an intent's data and clips, not of its extras.
        intent.setClipData(ClipData.newRawUri(null, target));
        startOrExplain(intent, PHOTOGRAPH);
    }

    private File photos() {
        return new File(getCacheDir(), "photos");
    }

    private void startOrExplain(Intent intent, int request) {
        try {
            startActivityForResult(intent, request);
        } catch (ActivityNotFoundException e) {
            answerLine.setText(request == PHOTOGRAPH ? R.string.no_camera : R.string.no_files);
        }
    }

    private void answer(Uri uri) {
        work(answerLine, () -> {
            if (app.student() == null) {
                return () -> answerLine.setText(R.string.no_model_yet);
            }
            DemoApp.Answer answer = app.answer(uri);
            return () -> show(answer);
        });
    }

    private void measure() {
        work(timingLine, () -> {
            Timing timing = Timing.of(app.student().model, app.last().pixels);
            return () -> timingLine.setText(timing.toString());
        });
    }

    private void showStudent(DemoApp.Student student) {
        if (student == null) {
            modelLine.setText(R.string.no_model);
            return;
        }
        modelLine.setText(student.artifact.summary());
        checkLine.setText(getString(R.string.check_passed, student.verdict.toString()));
        if (app.last() == null) {
            seen.setVisibility(View.GONE);
            answers.removeAllViews();
            answerLine.setText("");
            timingLine.setText("");
        }
    }

    private void show(DemoApp.Answer answer) {
        Rgb pixels = answer.pixels;
        seen.setImageBitmap(Bitmap.createBitmap(pixels.argb(), pixels.side, pixels.side, Bitmap.Config.ARGB_8888));
        seen.setVisibility(View.VISIBLE);
        answers.removeAllViews();
        int best = answer.best();
        // In the order of the classes, so that a class is found in the same place for every picture.
        for (int k = 0; k < answer.probabilities.length; k++) {
            View row = getLayoutInflater().inflate(R.layout.answer, answers, false);
            TextView name = row.findViewById(R.id.name);
            TextView percent = row.findViewById(R.id.percent);
            ProgressBar bar = row.findViewById(R.id.bar);
            name.setText(answer.artifact.classes.get(k));
            percent.setText(getString(R.string.percent, 100 * answer.probabilities[k]));
            bar.setProgress(Math.round(1000 * answer.probabilities[k]));
            if (k == best) {
                name.setTypeface(name.getTypeface(), Typeface.BOLD);
                percent.setTypeface(percent.getTypeface(), Typeface.BOLD);
            }
            answers.addView(row);
        }
        String line = getString(R.string.answered, answer.artifact.classes.get(best), 100 * answer.probabilities[best],
                answer.answeringMs, answer.preparingMs);
        answerLine.setText(answer.reduced == 1 ? line : line + "\n" + getString(R.string.reduced, answer.reduced));
        timingLine.setText("");
    }

    /** Runs a job with the buttons off, and shows what came of it, or in {@code line} why nothing did. */
    private void work(TextView line, Job job) {
        working++;
        enableButtons();
        line.setText(R.string.working);
        app.worker.execute(() -> {
            Runnable change;
            try {
                change = job.run();
            } catch (ArtifactException | IOException | RuntimeException e) {
                change = () -> line.setText(e.getMessage() == null ? e.toString() : e.getMessage());
            } catch (OutOfMemoryError | StackOverflowError e) {
                change = () -> line.setText(R.string.too_large);
            }
            Runnable shown = change;
            runOnUiThread(() -> {
                working--;
                if (!isDestroyed()) {
                    shown.run();
                    enableButtons();
                }
            });
        });
    }

    private void enableButtons() {
        boolean ready = working == 0 && app.student() != null;
        open.setEnabled(working == 0);
        choose.setEnabled(ready);
        photograph.setEnabled(ready);
        time.setEnabled(ready && app.last() != null);
    }
}
